#include "model/eval/scienceqa/score.h"

#include <cstdio>
#include <stdexcept>

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

// Whether a problem belongs to class number `i` of kScienceClasses.
bool Belongs(const ScienceProblem& problem, size_t i) {
  const bool text = !problem.hint.empty(), picture = !problem.image.empty();
  switch (i) {
    case 0:
      return problem.subject == "natural science";
    case 1:
      return problem.subject == "social science";
    case 2:
      return problem.subject == "language science";
    case 3:
      return text;
    case 4:
      return picture;
    case 5:
      return !text && !picture;
    case 6:
      return problem.grade >= 1 && problem.grade <= 6;
    case 7:
      return problem.grade >= 7;
    default:
      return true;
  }
}

// Divided first, as the published script does, so that the last digit is the same.
double Percent(const Share& share) { return share.value() * 100; }

std::string Format(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

}  // namespace

ScienceScore ScoreScience(const std::vector<ScienceProblem>& problems,
                          const std::vector<int>& answers) {
  if (problems.size() != answers.size()) {
    throw std::invalid_argument(std::to_string(problems.size()) + " problems, but " +
                                std::to_string(answers.size()) + " answers");
  }
  ScienceScore score;
  for (size_t p = 0; p < problems.size(); ++p) {
    const bool right = answers[p] == problems[p].answer;
    for (size_t i = 0; i < score.classes.size(); ++i) {
      if (Belongs(problems[p], i)) score.classes[i] += {right, 1};
    }
    score.missing += answers[p] == kMissingAnswer;
    score.unread += answers[p] == kUnreadAnswer;
    score.out_of_range += answers[p] == kAnswerOutOfRange;
    if (answers[p] < 0) score.failed_ids.push_back(problems[p].id);
  }
  return score;
}

Share RightInEither(const std::vector<ScienceProblem>& problems, const std::vector<int>& one,
                    const std::vector<int>& other) {
  Share share;
  for (size_t p = 0; p < problems.size(); ++p) {
    share += {one.at(p) == problems[p].answer || other.at(p) == problems[p].answer, 1};
  }
  return share;
}

Json ScienceScoreJson(const ScienceScore& score) {
  Json classes = Json::object();
  for (size_t i = 0; i < score.classes.size(); ++i) {
    const Share& share = score.classes[i];
    const Interval interval = WilsonInterval(share);
    classes[kScienceClasses[i]] = {{"acc", share.asked > 0 ? Json(Percent(share)) : Json()},
                                   {"low", 100 * interval.low},
                                   {"high", 100 * interval.high},
                                   {"right", share.right},
                                   {"count", share.asked}};
  }
  return {{"classes", std::move(classes)},
          {"failures",
           {{"missing", score.missing},
            {"unread", score.unread},
            {"out_of_range", score.out_of_range},
            {"ids", score.failed_ids}}}};
}

std::string ScienceScoreTable(const ScienceScore& score) {
  std::string head, line, rows;
  for (size_t i = 0; i < score.classes.size(); ++i) {
    const Share& share = score.classes[i];
    const std::string percent = share.asked > 0 ? Format("%.2f", Percent(share)) : "-";
    const char* bar = i == 3 || i == 6 || i == 8 ? " |" : "";
    char cell[96];
    std::snprintf(cell, sizeof(cell), "%s%7s", bar, kScienceClasses[i]);
    head += cell;
    std::snprintf(cell, sizeof(cell), "%s%7s", bar, percent.c_str());
    line += cell;
    const Interval interval = WilsonInterval(share);
    std::snprintf(cell, sizeof(cell), "%-6s %7s  %6.2f - %6.2f %7lld of %lld\n", kScienceClasses[i],
                  percent.c_str(), 100 * interval.low, 100 * interval.high,
                  static_cast<long long>(share.right), static_cast<long long>(share.asked));
    rows += cell;
  }
  rows += "without an answer, counted as wrong: " + std::to_string(score.failed_ids.size());
  if (!score.failed_ids.empty()) {
    rows += " (" + std::to_string(score.missing) + " missing, " + std::to_string(score.unread) +
            " not readable, " + std::to_string(score.out_of_range) + " no such choice):";
    constexpr size_t kShown = 10;
    for (size_t i = 0; i < score.failed_ids.size() && i < kShown; ++i) {
      rows += " " + score.failed_ids[i];
    }
    if (score.failed_ids.size() > kShown) rows += " ..";
  }
  return head + "\n" + line + "\n\nclass    right  95 % interval\n" + rows + "\n";
}

}  // namespace llava
