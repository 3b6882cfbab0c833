#pragma once

// Reviews as the figures of the paper: a candidate's mean score as a share of the reference's.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/eval/judge/reviews.h"
#include "model/eval/share.h"

namespace llava {

// One category, or "all" questions.
struct JudgeRow {
  std::string category;
  int64_t count = 0;
  // As the published summary prints: 100 times the ratio of both means (of all scores, those that
  // could not be read as -1; means rounded to 3 decimals first), and the means times 10.
  // `relative` is NaN where none could be read: the ratio of two -1 says nothing.
  double relative = 0, reference = 0, candidate = 0;
  Interval interval;  // of `relative`, 95 %, by drawing questions anew (percentiles)
  // Of the scores that could be read robustly: how often the candidate has more, as much, less.
  int64_t win = 0, tie = 0, loss = 0;
  int64_t unread = 0;   // no scores, not even read robustly
  int64_t mended = 0;   // read robustly alone
  int64_t outside = 0;  // read as published, but not from 0 to 10: they count as they are
  double robust = 0;    // the relative score of those read robustly; NaN if none were
};

struct BootstrapOptions {
  int samples = 2000;
  uint64_t seed = 1;
};

// By name, "all" among them, as the published summary sorts. Reviews without a category count for
// "all" alone. Throws std::invalid_argument for no reviews.
std::vector<JudgeRow> SummarizeReviews(const std::vector<JudgeReview>& reviews,
                                       const BootstrapOptions& bootstrap);

// Several runs of the judge over the same questions: averages of their figures, each rounded to the
// decimal that is printed, as the published averages are.
struct JudgeAverage {
  std::string category;
  Spread relative, reference, candidate;
};
// Throws std::invalid_argument if the runs have other categories or numbers of questions.
std::vector<JudgeAverage> AverageRuns(const std::vector<std::vector<JudgeRow>>& runs);

nlohmann::ordered_json JudgeRowsJson(const std::vector<JudgeRow>& rows);
nlohmann::ordered_json JudgeAveragesJson(const std::vector<JudgeAverage>& averages);
// For people.
std::string JudgeTable(const std::vector<JudgeRow>& rows);
std::string JudgeAverageTable(const std::vector<JudgeAverage>& averages);

}  // namespace llava
