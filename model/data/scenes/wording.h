#pragma once

// The words of questions and answers: types of questions and the tables of their wordings.

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/data/scenes/category.h"
#include "model/data/scenes/scene.h"

namespace llava {

enum class QuestionType {
  // What the picture shows.
  kWhat,
  kThis,   // scenes of one object
  kBrief,  // as kWhat, asked in the longer wordings of a data file
  kDetail,
  kCount,
  kTotal,
  kGroupCount,
  kExist,
  kSide,
  kLeftOf,
  kSideOf,
  kAbove,
  kWhere,
  kBigger,
  kBackground,
  // Reasoning: the picture and a fact about the world.
  kKind,
  kColour,
  kEat,
  kFly,
  kAlive,
  kWhichEat,
  kWhichFly,
  kSame,
  // Follow-ups, which only an earlier turn makes clear.
  kFollowSide,
  kFollowKind,
  kFollowColour,
  kFollowEat,
  kFollowFly,
  kFollowAlive,
  kFollowWhere,
  kFollowCount,
};
inline constexpr int kNumQuestionTypes = static_cast<int>(QuestionType::kFollowCount) + 1;

// "what", "f_side" and so on, as in tables of results.
std::string_view NameOf(QuestionType type);
// Throws std::invalid_argument listing the names.
QuestionType QuestionTypeNamed(std::string_view name);

// The wordings of a type; {0}, {1} and {2} stand for what is asked about. kBrief has none of its
// own.
std::span<const std::string_view> WordingsOf(QuestionType type);
// `wording` with the parts in place of {0}, {1} and so on.
std::string Fill(std::string_view wording, std::initializer_list<std::string_view> parts);

// "no", "one" .. "four".
std::string_view NumberWord(int number);
inline constexpr int kNumberWords = kMaxObjects + 1;
// "None." for 0, else "One." and so on.
std::string CountAnswer(int number);

std::string Capitalized(std::string text);
// "a", "a and b", "a, b and c".
std::string JoinWords(const std::vector<std::string>& words);
// What a thing of this group is: "an animal", but "food".
std::string KindPhrase(std::string_view group);
// "on the left", "at the top".
std::string_view SidePhrase(Side side);

}  // namespace llava
