#pragma once

// What a judge says about two assistants, and the two scores in it.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

// Of the reference answer and of the candidate's: 1 to 10 each, as judges are told. Robustly read
// they are from 0 to 10, strictly whatever stands there, and -1 where nothing does (kNoScores).
struct JudgeScores {
  double reference = 0, candidate = 0;
  bool operator==(const JudgeScores&) const = default;
};

// What LLaVA's evaluation writes where it finds no scores; its summary counts them in.
inline constexpr JudgeScores kNoScores = {-1, -1};

// As LLaVA's evaluation, to the letter: the first line, with commas taken as spaces, is two numbers
// with one space between. But "nan" and "inf", which Python reads, are none.
std::optional<JudgeScores> ParseScoresStrictly(std::string_view review);

// What people would see as the scores: also "8, 9", "**8** 9", "8/10 9/10", "Assistant 1: 8" over
// "Assistant 2: 9", a line of scores further down, two scores and more text behind them, and a
// Python tuple at the end. From 0 to 10, else they are none.
std::optional<JudgeScores> ParseScoresRobustly(std::string_view review);

struct JudgeReview {
  std::string question_id;
  std::string category;  // empty where the file has none
  std::string content;   // what the judge wrote; empty where the file has only scores
  // What the published summary takes: the file's scores, kNoScores included; without, those that
  // ParseScoresStrictly finds.
  JudgeScores published;
  // The file's scores, or where it has none from 0 to 10, those that ParseScoresRobustly finds.
  std::optional<JudgeScores> robust;
  int64_t questions = 0;  // that were to be judged, as the line says; 0: it does not
};

// JSON lines with "question_id", "content" (or "text") or "tuple" (or "score"), "category" and
// "questions" if they have them. Throws std::runtime_error naming file and line, also for an empty
// file.
std::vector<JudgeReview> ReadReviews(const std::filesystem::path& path);

}  // namespace llava
