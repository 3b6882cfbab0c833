#pragma once

// The table of ScienceQA: accuracy by subject, by what there is to look at or read, and by grade.

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/eval/scienceqa/answers.h"
#include "model/eval/scienceqa/problems.h"
#include "model/eval/share.h"

namespace llava {

// TXT: has something to read; IMG: has a picture (some have both); NO: neither.
inline constexpr std::array<const char*, 9> kScienceClasses = {"NAT", "SOC",  "LAN",   "TXT", "IMG",
                                                               "NO",  "G1-6", "G7-12", "AVG"};

struct ScienceScore {
  std::array<Share, kScienceClasses.size()> classes;
  // Why there was no choice; all count as wrong.
  int64_t missing = 0, unread = 0, out_of_range = 0;
  std::vector<std::string> failed_ids;  // of these
};

// `answers`: ChosenAnswers. Throws std::invalid_argument unless there is one for each problem.
ScienceScore ScoreScience(const std::vector<ScienceProblem>& problems,
                          const std::vector<int>& answers);

// Problems that at least one of two models has right: what no ensemble of them can exceed.
Share RightInEither(const std::vector<ScienceProblem>& problems, const std::vector<int>& one,
                    const std::vector<int>& other);

// {"classes": {"NAT": {"acc", "low", "high", "right", "count"}, ..}, "failures": {..}}; percent.
nlohmann::ordered_json ScienceScoreJson(const ScienceScore& score);
// For people: the line of the paper's table, then a line per class.
std::string ScienceScoreTable(const ScienceScore& score);

}  // namespace llava
