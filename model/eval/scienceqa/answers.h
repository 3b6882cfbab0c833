#pragma once

// What a model chose: read from its texts, or from the choices a result file holds.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/eval/scienceqa/problems.h"

namespace llava {

// How a choice is found in a text.
enum class AnswerReading {
  // As LLaVA's evaluation: the text is a letter; or it begins with a letter and ". "; or it says
  // "The answer is X." exactly once. Letters beyond the choices are read, and are wrong.
  kPublished,
  // Its last rule alone, as where GPT-4 helps.
  kSentence,
  // Also "ANSWER: B", "(b)", "b)", "answer is B" at the end of a line, or the words of one choice.
  kLenient,
};

// Why there is no choice; all are below 0, choices are not.
inline constexpr int kUnreadAnswer = -1;
inline constexpr int kAnswerOutOfRange = -2;  // a letter or number that has no choice
inline constexpr int kMissingAnswer = -3;

// A choice, kUnreadAnswer or kAnswerOutOfRange.
int ReadAnswer(std::string_view text, const std::vector<std::string>& choices,
               AnswerReading reading);

struct SciencePrediction {
  std::string text;
  std::optional<int64_t> choice;  // where the file tells it; negative: the model has failed
};

struct SciencePredictions {
  std::map<std::string, SciencePrediction> by_id;
  int64_t repeated = 0;                   // ids that came again; the last one stays
  std::optional<int64_t> stated_correct;  // what a result file says of itself
};

// Of a result file ({"results": {id: choice}, "outputs": {id: text}}, one of them suffices), or of
// JSON lines with "question_id" (or "id") and "text" (or "output"), or "choice". Throws
// std::runtime_error naming file and line or key.
SciencePredictions ReadSciencePredictions(const std::filesystem::path& path);

// Per problem what was chosen. `texts_only`: the choices that the file tells are not used.
std::vector<int> ChosenAnswers(const std::vector<ScienceProblem>& problems,
                               const SciencePredictions& predictions, AnswerReading reading,
                               bool texts_only = false);

// `preferred`, but where that has no readable answer, `otherwise`: with GPT-4's answers in front of
// LLaVA's the paper's "complement", with GPT-4's verdicts between both in front its "judge".
std::vector<int> FallBack(const std::vector<int>& preferred, const std::vector<int>& otherwise);

}  // namespace llava
