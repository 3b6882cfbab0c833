#include "model/eval/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/eval/share.h"
#include "model/eval/vqa/vqa_files.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

struct Flags {
  std::string annotations, answers, by, questions;
  std::vector<std::string> labels;
  bool textvqa = false, json = false;
};

// A mean of accuracies.
struct Mean {
  double sum = 0;
  int64_t count = 0;
  double percent() const { return 100 * sum / static_cast<double>(count); }
};

int Accuracy(const Flags& flags, bool soft) {
  const std::map<std::string, std::string> answers = ReadVqaAnswers(flags.answers, flags.textvqa);
  std::map<std::string, Mean> groups;
  Mean all;
  int64_t missing = 0, known = 0;
  for (const VqaQuestion& question : ReadVqaQuestions(flags.annotations, flags.by, flags.textvqa)) {
    const auto found = answers.find(question.id);
    double accuracy = 0;
    if (found == answers.end()) {
      ++missing;
    } else {
      ++known;
      accuracy = soft ? VqaSoftAccuracy(found->second, question.answers, flags.textvqa)
                      : VqaExactMatch(found->second, question.answers);
    }
    for (Mean* mean : {&all, flags.by.empty() ? nullptr : &groups[question.group]}) {
      if (!mean) continue;
      mean->sum += accuracy;
      ++mean->count;
    }
  }
  const int64_t surplus = static_cast<int64_t>(answers.size()) - known;
  if (flags.json) {
    Json by = Json::object();
    for (const auto& [name, mean] : groups) {
      by[name] = {{"acc", mean.percent()}, {"count", mean.count}};
    }
    const Json json = {{"kind", "vqa"},
                       {"metric", soft ? "soft" : "exact"},
                       {"answers", flags.answers},
                       {"acc", all.percent()},
                       {"count", all.count},
                       {"missing", missing},
                       {"surplus", surplus},
                       {"groups", std::move(by)}};
    std::printf("%s\n", json.dump(2).c_str());
    return 0;
  }
  std::printf("%-24s %7.2f of %lld questions\n", soft ? "soft accuracy" : "exact match",
              all.percent(), static_cast<long long>(all.count));
  for (const auto& [name, mean] : groups) {
    std::printf("  %-22s %7.2f of %lld\n", name.empty() ? "(none)" : name.c_str(), mean.percent(),
                static_cast<long long>(mean.count));
  }
  if (missing > 0) {
    std::printf("%lld without an answer, counted as wrong\n", static_cast<long long>(missing));
  }
  if (surplus > 0) {
    std::printf("%lld answers to other questions are left out\n", static_cast<long long>(surplus));
  }
  return 0;
}

Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

Json PopeJson(const PopeCounts& counts) {
  return {{"f1", Number(counts.f1())},
          {"accuracy", Number(counts.accuracy())},
          {"precision", Number(counts.precision())},
          {"recall", Number(counts.recall())},
          {"yes_ratio", Number(counts.yes_ratio())},
          {"true_yes", counts.true_yes},
          {"false_yes", counts.false_yes},
          {"true_no", counts.true_no},
          {"false_no", counts.false_no},
          {"unclear", counts.unclear}};
}

int Pope(const Flags& flags) {
  const std::vector<std::filesystem::path> labels(flags.labels.begin(), flags.labels.end());
  auto categories = CountPope(labels, flags.answers, flags.questions);
  PopeCounts all;
  double f1 = 0;
  for (const auto& [name, counts] : categories) {
    all += counts;
    f1 += counts.f1() / static_cast<double>(categories.size());
  }
  if (flags.json) {
    Json by = Json::object();
    for (const auto& [name, counts] : categories) by[name] = PopeJson(counts);
    const Json json = {{"kind", "vqa"},
                       {"metric", "pope"},
                       {"answers", flags.answers},
                       {"mean_f1", Number(f1)},
                       {"categories", std::move(by)},
                       {"all", PopeJson(all)}};
    std::printf("%s\n", json.dump(2).c_str());
    return 0;
  }
  std::printf("%-14s %6s %8s %9s %6s %9s %6s %7s\n", "category", "F1", "accuracy", "precision",
              "recall", "yes ratio", "n", "unclear");
  categories.emplace_back("all", all);
  for (const auto& [name, counts] : categories) {
    std::printf("%-14s %6.3f %8.3f %9.3f %6.3f %9.3f %6lld %7lld\n", name.c_str(), counts.f1(),
                counts.accuracy(), counts.precision(), counts.recall(), counts.yes_ratio(),
                static_cast<long long>(counts.count()), static_cast<long long>(counts.unclear));
  }
  std::printf("mean F1 of the categories: %.3f\n", f1);
  return 0;
}

void AddAccuracy(CLI::App& app, Flags& flags) {
  app.add_option("--annotations", flags.annotations,
                 "Questions with people's answers: JSON lines (\"question_id\", \"answers\" or "
                 "\"answer\") or VQA's annotations")
      ->required();
  app.add_option("--answers", flags.answers, "JSON lines (\"question_id\", \"text\")")->required();
  app.add_option("--by", flags.by, "Key of the annotations to group by, as answer_type");
  app.add_flag("--json", flags.json, "Print JSON instead of a table");
}

}  // namespace

std::function<int()> AddVqaCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("vqa", "Short answers to questions about pictures");
  command->require_subcommand(1);
  const auto flags = std::make_shared<Flags>();
  CLI::App* exact = command->add_subcommand("exact", "Share of answers that equal a right one");
  AddAccuracy(*exact, *flags);
  CLI::App* soft = command->add_subcommand("soft", "VQA's accuracy, by how many people agree");
  AddAccuracy(*soft, *flags);
  soft->add_flag("--textvqa", flags->textvqa,
                 "TextVQA: its way to take answers apart; answers and questions are "
                 "joined by picture and question");
  CLI::App* pope = command->add_subcommand("pope", "Yes or no: F1, accuracy, precision, recall");
  pope->add_option("--labels", flags->labels,
                   "JSON lines with \"label\", a file a category, named coco_pope_<category>.json")
      ->required();
  pope->add_option("--answers", flags->answers, "JSON lines (\"question_id\", \"text\")")
      ->required();
  pope->add_option("--questions", flags->questions,
                   "JSON lines with \"category\": questions meet labels by their order within it");
  pope->add_flag("--json", flags->json, "Print JSON instead of a table");
  return [=] { return pope->parsed() ? Pope(*flags) : Accuracy(*flags, soft->parsed()); };
}

}  // namespace llava
