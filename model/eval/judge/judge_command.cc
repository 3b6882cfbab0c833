#include "model/eval/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/eval/asking/chat_asking.h"
#include "model/eval/judge/reviews.h"
#include "model/eval/judge/summary.h"
#include "model/eval/judge/tasks.h"
#include "model/progress/stop_request.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

struct ParseFlags {
  std::vector<std::string> files;
  std::string out;
  bool json = false;
};

struct AskFlags {
  AskFlags()
      : chat({.id = "", .model = "", .messages = {}, .max_tokens = 1024, .temperature = 0.2}) {}

  std::string questions, contexts, rules, reference, candidate, out;
  int runs = 1;
  ChatFlags chat;
};

struct SummarizeFlags {
  std::vector<std::string> files;
  std::vector<std::string> ignore;
  BootstrapOptions bootstrap;
  bool json = false;
};

Json ScoresJson(const std::optional<JudgeScores>& scores) {
  return scores ? Json{scores->reference, scores->candidate} : Json();
}

// The beginning of a review, in one line.
std::string Shown(const std::string& content) {
  constexpr size_t kMost = 100;
  std::string text(CutUtf8(content, kMost));
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text + (content.size() > kMost ? ".." : "");
}

int Parse(const ParseFlags& flags) {
  std::string lines;
  Json json = Json::array();
  for (const std::string& file : flags.files) {
    int64_t strict = 0, robust = 0;
    Json unread = Json::array();
    std::string shown;
    const std::vector<JudgeReview> reviews = ReadReviews(file);
    for (const JudgeReview& review : reviews) {
      const auto by_rule = ParseScoresStrictly(review.content);
      const auto kindly = ParseScoresRobustly(review.content);
      strict += by_rule.has_value();
      robust += kindly.has_value();
      lines += Json{{"file", file},
                    {"question_id", review.question_id},
                    {"category", review.category},
                    {"tuple", ScoresJson(by_rule.value_or(kNoScores))},
                    {"robust", ScoresJson(kindly)}}
                   .dump() +
               "\n";
      if (kindly) continue;
      unread.push_back({{"question_id", review.question_id}, {"content", review.content}});
      shown += "  question " + review.question_id + ": " + Shown(review.content) + "\n";
    }
    json.push_back({{"file", file},
                    {"reviews", reviews.size()},
                    {"strict", strict},
                    {"robust", robust},
                    {"unread", std::move(unread)}});
    if (flags.json) continue;
    std::printf(
        "%s: %zu reviews, scores read by the published rule %lld, robustly %lld, not %zu\n%s",
        file.c_str(), reviews.size(), static_cast<long long>(strict),
        static_cast<long long>(robust), reviews.size() - static_cast<size_t>(robust),
        shown.c_str());
  }
  if (!flags.out.empty()) WriteDurably(flags.out, lines);
  if (flags.json)
    std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  return 0;
}

// "reviews.jsonl" of run 1 is "reviews-2.jsonl" of run 2.
std::filesystem::path FileOfRun(const std::filesystem::path& out, int run) {
  if (run == 0) return out;
  return out.parent_path() /
         (out.stem().string() + "-" + std::to_string(run + 1) + out.extension().string());
}

int Ask(const AskFlags& flags) {
  const std::vector<JudgeTask> tasks = JoinJudgeFiles({.questions = flags.questions,
                                                       .contexts = flags.contexts,
                                                       .rules = flags.rules,
                                                       .reference = flags.reference,
                                                       .candidate = flags.candidate});
  const ChatRequest base = flags.chat.Request();
  const auto name = [&tasks](size_t number) {
    return tasks[number % tasks.size()].question_id + " of run " +
           std::to_string(number / tasks.size() + 1);
  };
  const auto make = [&](size_t number) {
    const JudgeTask& task = tasks[number % tasks.size()];
    ChatRequest request = base;
    request.id = name(number);
    request.sample = static_cast<int>(number / tasks.size());
    request.messages = {{"system", task.system, {}}, {"user", task.prompt, {}}};
    return request;
  };
  const StopRequest stop;
  const ChatAnswers answers =
      AskChat(flags.chat, flags.out + ".journal", tasks.size() * static_cast<size_t>(flags.runs),
              make, "judging", stderr);
  int64_t unread = 0;
  for (int run = 0; run < flags.runs; ++run) {
    std::string lines;
    for (size_t t = 0; t < tasks.size(); ++t) {
      const auto found = answers.replies.find(name(static_cast<size_t>(run) * tasks.size() + t));
      if (found == answers.replies.end()) continue;
      const std::string& review = found->second.text;
      Json line = tasks[t].head;
      line["content"] = review;
      line["tuple"] = ScoresJson(ParseScoresStrictly(review).value_or(kNoScores));
      line["questions"] = tasks.size();
      lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
      if (ParseScoresRobustly(review)) continue;
      ++unread;
      std::fprintf(stderr, "no scores in the review of question %s: %s\n",
                   tasks[t].question_id.c_str(), Shown(review).c_str());
    }
    WriteOutcome(answers, FileOfRun(flags.out, run), lines, stderr);
  }
  if (unread > 0) {
    std::fprintf(stderr, "%lld reviews without scores\n", static_cast<long long>(unread));
  }
  return answers.Report("llava-eval", stderr);
}

// Questions that were to be judged, as the lines tell, and have no review; 0 if they do not tell.
int64_t NumMissing(const std::vector<JudgeReview>& reviews) {
  std::set<std::string> ids;
  int64_t questions = 0;
  for (const JudgeReview& review : reviews) {
    ids.insert(review.question_id);
    questions = std::max(questions, review.questions);
  }
  return std::max<int64_t>(0, questions - static_cast<int64_t>(ids.size()));
}

int Summarize(const SummarizeFlags& flags) {
  const std::set<std::string> ignored(flags.ignore.begin(), flags.ignore.end());
  std::vector<std::vector<JudgeRow>> runs;
  std::vector<std::set<std::string>> questions;
  Json files = Json::array();
  std::string text;
  for (const std::string& file : flags.files) {
    std::vector<JudgeReview> reviews = ReadReviews(file);
    const int64_t missing = NumMissing(reviews);
    std::erase_if(reviews, [&ignored](const JudgeReview& review) {
      return ignored.contains(review.question_id);
    });
    if (reviews.empty()) throw std::invalid_argument(file + ": --ignore leaves no reviews");
    runs.push_back(SummarizeReviews(reviews, flags.bootstrap));
    questions.emplace_back();
    for (const JudgeReview& review : reviews) questions.back().insert(review.question_id);
    files.push_back(
        {{"file", file}, {"missing", missing}, {"categories", JudgeRowsJson(runs.back())}});
    text += std::filesystem::path(file).filename().string() + "\n" + JudgeTable(runs.back());
    if (missing > 0) {
      text += std::to_string(missing) + " questions without a review: not all were judged\n";
    }
    text += "\n";
  }
  Json json = {{"kind", "judge"}, {"files", std::move(files)}};
  if (runs.size() > 1) {
    const bool same = std::all_of(questions.begin(), questions.end(),
                                  [&](const auto& ids) { return ids == questions[0]; });
    if (same) {
      const std::vector<JudgeAverage> averages = AverageRuns(runs);
      json["average"] = JudgeAveragesJson(averages);
      text += "mean of " + std::to_string(runs.size()) + " runs ± standard deviation\n" +
              JudgeAverageTable(averages);
    } else {
      json["average"] = nullptr;
      text += "no average: the files review different questions\n";
    }
  }
  std::printf("%s", flags.json ? (json.dump(2) + "\n").c_str() : text.c_str());
  return 0;
}

}  // namespace

std::function<int()> AddJudgeCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("judge", "Answers beside those of a reference, scored by a judge");
  command->require_subcommand(1);

  const auto ask_flags = std::make_shared<AskFlags>();
  CLI::App* ask = command->add_subcommand("ask", "Asks a judge for reviews of two assistants");
  ask->add_option("--questions", ask_flags->questions,
                  "JSON lines (\"question_id\", \"text\", \"category\", \"image\")")
      ->required();
  ask->add_option("--contexts", ask_flags->contexts,
                  "JSON lines (\"image\" and \"captions\", \"instances\" or \"caption\"); without, "
                  "the judge is not told of pictures");
  ask->add_option("--rules", ask_flags->rules, "JSON file of what is asked, by category");
  ask->add_option("--reference", ask_flags->reference, "Answers of assistant 1, JSON lines")
      ->required();
  ask->add_option("--candidate", ask_flags->candidate, "Answers of assistant 2, JSON lines")
      ->required();
  ask->add_option("--out", ask_flags->out, "File of reviews, JSON lines")->required();
  ask->add_option("--runs", ask_flags->runs, "Reviews of every question, in a file each")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  ask_flags->chat.Add(*ask, "Judge");

  const auto parse_flags = std::make_shared<ParseFlags>();
  CLI::App* parse =
      command->add_subcommand("parse", "Scores in the reviews, by the published rule and robustly");
  parse->add_option("REVIEWS", parse_flags->files, "Files of reviews, JSON lines")->required();
  parse->add_option("--out", parse_flags->out, "File for both readings, a JSON object a review");
  parse->add_flag("--json", parse_flags->json, "Print JSON, all reviews without scores included");

  const auto summarize_flags = std::make_shared<SummarizeFlags>();
  CLI::App* summarize = command->add_subcommand(
      "summarize", "The candidate's mean score as a share of the reference's, by category");
  summarize
      ->add_option(
          "REVIEWS", summarize_flags->files,
          "Files of reviews, JSON lines; several runs over the same questions are averaged")
      ->required();
  summarize->add_option("--ignore", summarize_flags->ignore, "Ids of questions, with commas")
      ->delimiter(',');
  summarize
      ->add_option("--samples", summarize_flags->bootstrap.samples, "Of the bootstrap interval")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  summarize->add_option("--seed", summarize_flags->bootstrap.seed, "Of the bootstrap interval")
      ->capture_default_str();
  summarize->add_flag("--json", summarize_flags->json, "Print JSON instead of tables");
  return [=] {
    if (ask->parsed()) return Ask(*ask_flags);
    return parse->parsed() ? Parse(*parse_flags) : Summarize(*summarize_flags);
  };
}

}  // namespace llava
