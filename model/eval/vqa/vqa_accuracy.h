#pragma once

// How short answers to questions about pictures are compared with those of people.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

// What the VQA evaluation compares: lower case, no articles, numbers up to ten as digits, no
// punctuation (or spaces in its place), contractions with their apostrophes. `textvqa`: before
// this, what TextVQA's evaluation does (commas and question marks go, "'s" is a word).
std::string NormalizedVqaAnswer(std::string_view answer, bool textvqa = false);

// VQA's accuracy: over all ways to leave one of the people's answers out, the mean of
// min(1, equal others / 3). All are normalized before. Throws std::invalid_argument for fewer than
// two answers of people: without others, none can agree.
double VqaSoftAccuracy(std::string_view answer, std::span<const std::string> people,
                       bool textvqa = false);

// Equal to one of the answers, but for case, white space at the ends and a final full stop.
bool VqaExactMatch(std::string_view answer, std::span<const std::string> right);

// POPE: is it there?
enum class YesNo { kYes, kNo };
// As LLaVA's evaluation reads an answer: no if its first sentence has one of the words "No", "no"
// and "not", else yes.
YesNo ReadYesNo(std::string_view answer);
// Whether it has "yes" or a "no" at all, in any case.
bool SaysYesOrNo(std::string_view answer);

struct PopeCounts {
  int64_t true_yes = 0, false_yes = 0, true_no = 0, false_no = 0;
  int64_t unclear = 0;  // not SaysYesOrNo; read all the same

  void Add(YesNo label, std::string_view answer);
  PopeCounts& operator+=(const PopeCounts& other);
  int64_t count() const { return true_yes + false_yes + true_no + false_no; }
  // Shares; NaN where nothing was asked or said.
  double accuracy() const;
  double precision() const;
  double recall() const;
  double f1() const;
  double yes_ratio() const;
};

}  // namespace llava
