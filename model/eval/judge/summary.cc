#include "model/eval/judge/summary.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>

#include "model/data/scenes/random.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kAll = "all";
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// As Python's round: the nearest decimal to the exact value, and of two equally near ones the even.
double Round3(double value) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.3f", value);
  return std::strtod(text, nullptr);
}

std::string Decimal(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", value);
  return std::isfinite(value) ? text : "-";
}

// As the published summary prints it: figures of several runs are averages of printed figures.
double Printed(double value) {
  return std::isfinite(value) ? std::strtod(Decimal(value).c_str(), nullptr) : value;
}

struct Means {
  double reference = 0, candidate = 0;
  double relative() const { return candidate / reference * 100; }
};

// `score` gives the scores number 0 .. count - 1.
template <typename Score>
Means MeansOf(size_t count, const Score& score) {
  Means sums;
  for (size_t i = 0; i < count; ++i) {
    const JudgeScores& scores = score(i);
    sums.reference += scores.reference;
    sums.candidate += scores.candidate;
  }
  const auto n = static_cast<double>(count);
  return {sums.reference / n, sums.candidate / n};
}

Interval Bootstrap(std::span<const JudgeScores> scores, const BootstrapOptions& options,
                   uint64_t stream) {
  Random random(options.seed, stream);
  std::vector<double> relative;
  for (int s = 0; s < options.samples; ++s) {
    const auto draw = [&](size_t) -> const JudgeScores& { return random.Pick(scores); };
    const double drawn = MeansOf(scores.size(), draw).relative();
    if (std::isfinite(drawn)) relative.push_back(drawn);
  }
  if (relative.empty()) return {kNone, kNone};
  std::sort(relative.begin(), relative.end());
  const auto at = [&relative](double share) {
    return relative[static_cast<size_t>(share * static_cast<double>(relative.size() - 1) + 0.5)];
  };
  return {at(0.025), at(0.975)};
}

JudgeRow Row(const std::string& category, const std::vector<const JudgeReview*>& reviews,
             const BootstrapOptions& bootstrap, uint64_t stream) {
  JudgeRow row;
  row.category = category;
  row.count = static_cast<int64_t>(reviews.size());
  std::vector<JudgeScores> published, read;
  for (const JudgeReview* review : reviews) {
    published.push_back(review->published);
    const bool without = review->published == kNoScores;
    row.outside += !without && review->robust != review->published;
    row.unread += without && !review->robust;
    row.mended += without && review->robust;
    if (!review->robust) continue;
    read.push_back(*review->robust);
    const double ahead = review->robust->candidate - review->robust->reference;
    row.win += ahead > 0;
    row.tie += ahead == 0;
    row.loss += ahead < 0;
  }
  const auto element = [](const std::vector<JudgeScores>& scores) {
    return [&scores](size_t i) -> const JudgeScores& { return scores[i]; };
  };
  Means means = MeansOf(published.size(), element(published));
  means = {Round3(means.reference), Round3(means.candidate)};
  const bool any = row.unread + row.mended < row.count;  // with scores by the published rule
  row.relative = any ? means.relative() : kNone;
  row.reference = means.reference * 10;
  row.candidate = means.candidate * 10;
  row.robust = read.empty() ? kNone : MeansOf(read.size(), element(read)).relative();
  row.interval = any ? Bootstrap(published, bootstrap, stream) : Interval{kNone, kNone};
  return row;
}

Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

std::string PlusMinus(const Spread& spread) {
  return Decimal(spread.mean) + (spread.deviation ? " ± " + Decimal(*spread.deviation) : "");
}

Json SpreadJson(const Spread& spread) {
  return {{"mean", Number(spread.mean)},
          {"deviation", spread.deviation ? Number(*spread.deviation) : Json()}};
}

}  // namespace

std::vector<JudgeRow> SummarizeReviews(const std::vector<JudgeReview>& reviews,
                                       const BootstrapOptions& bootstrap) {
  if (reviews.empty()) throw std::invalid_argument("no reviews to summarize");
  std::map<std::string, std::vector<const JudgeReview*>> by_category;
  for (const JudgeReview& review : reviews) {
    by_category[kAll].push_back(&review);
    if (!review.category.empty() && review.category != kAll) {
      by_category[review.category].push_back(&review);
    }
  }
  std::vector<JudgeRow> rows;
  for (const auto& [category, members] : by_category) {
    rows.push_back(Row(category, members, bootstrap, rows.size()));
  }
  return rows;
}

std::vector<JudgeAverage> AverageRuns(const std::vector<std::vector<JudgeRow>>& runs) {
  if (runs.empty()) throw std::invalid_argument("no runs to average");
  std::vector<JudgeAverage> averages;
  for (size_t i = 0; i < runs[0].size(); ++i) {
    const JudgeRow& first = runs[0][i];
    std::vector<double> relative, reference, candidate;
    for (const std::vector<JudgeRow>& run : runs) {
      if (run.size() != runs[0].size() || run[i].category != first.category ||
          run[i].count != first.count) {
        throw std::invalid_argument("not runs over the same questions: they differ in \"" +
                                    first.category + "\"");
      }
      relative.push_back(Printed(run[i].relative));
      reference.push_back(Printed(run[i].reference));
      candidate.push_back(Printed(run[i].candidate));
    }
    averages.push_back(
        {first.category, SpreadOf(relative), SpreadOf(reference), SpreadOf(candidate)});
  }
  return averages;
}

Json JudgeRowsJson(const std::vector<JudgeRow>& rows) {
  Json json = Json::object();
  for (const JudgeRow& row : rows) {
    json[row.category] = {{"relative", Number(row.relative)},
                          {"low", Number(row.interval.low)},
                          {"high", Number(row.interval.high)},
                          {"reference", Number(row.reference)},
                          {"candidate", Number(row.candidate)},
                          {"win", row.win},
                          {"tie", row.tie},
                          {"loss", row.loss},
                          {"count", row.count},
                          {"unread", row.unread},
                          {"mended", row.mended},
                          {"outside", row.outside},
                          {"relative_of_read", Number(row.robust)}};
  }
  return json;
}

Json JudgeAveragesJson(const std::vector<JudgeAverage>& averages) {
  Json json = Json::object();
  for (const JudgeAverage& average : averages) {
    json[average.category] = {{"relative", SpreadJson(average.relative)},
                              {"reference", SpreadJson(average.reference)},
                              {"candidate", SpreadJson(average.candidate)}};
  }
  return json;
}

std::string JudgeTable(const std::vector<JudgeRow>& rows) {
  std::string table =
      "category             relative reference candidate  95 % interval   win  tie loss     n\n";
  int64_t mended = 0, unread = 0, outside = 0;
  for (const JudgeRow& row : rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-20s %8s %9s %9s %6s - %-6s %4lld %4lld %4lld %5lld\n",
                  row.category.c_str(), Decimal(row.relative).c_str(),
                  Decimal(row.reference).c_str(), Decimal(row.candidate).c_str(),
                  Decimal(row.interval.low).c_str(), Decimal(row.interval.high).c_str(),
                  static_cast<long long>(row.win), static_cast<long long>(row.tie),
                  static_cast<long long>(row.loss), static_cast<long long>(row.count));
    table += line;
    if (row.category != kAll) continue;
    mended = row.mended;
    unread = row.unread;
    outside = row.outside;
  }
  if (mended + unread + outside == 0) return table;
  if (mended + unread > 0) {
    table += "without scores by the published rule, counted as -1 above: " +
             std::to_string(mended + unread) + "; read more kindly: " + std::to_string(mended) +
             ", without scores: " + std::to_string(unread) + "\n";
  }
  if (outside > 0) {
    table += "with scores that are not from 0 to 10, counted as they are above: " +
             std::to_string(outside) + "\n";
  }
  table += "relative, of those read from 0 to 10:";
  for (const JudgeRow& row : rows) table += " " + row.category + " " + Decimal(row.robust);
  return table + "\n";
}

std::string JudgeAverageTable(const std::vector<JudgeAverage>& averages) {
  std::string table = "category             relative         reference        candidate\n";
  const auto padded = [](std::string text) {
    // "±" is two bytes of one column.
    const size_t columns = text.size() - (text.find("±") != text.npos ? 1 : 0);
    return text + std::string(columns < 16 ? 16 - columns : 1, ' ');
  };
  for (const JudgeAverage& average : averages) {
    std::string name = average.category;
    name.resize(std::max<size_t>(20, name.size()), ' ');
    table += name + " " + padded(PlusMinus(average.relative)) + " " +
             padded(PlusMinus(average.reference)) + " " + PlusMinus(average.candidate) + "\n";
  }
  return table;
}

}  // namespace llava
