#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/data/questions/question_lists.h"
#include "model/datagen/commands.h"
#include "model/datagen/instruct.h"
#include "model/datagen/source_flags.h"
#include "model/openai/chat_flags.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

constexpr int kBudgetUsedUp = 3;

struct Flags {
  SourceFlags source;
  ChatFlags chat{TeacherDefaults()};
  InstructOptions options;
  std::vector<std::string> mix, boxes = {"detail", "complex"};
  std::string prompts, detailed_questions, language = "en";
  double most_failed = 10;  // percent
};

// "detail=23".
void ReadShare(const std::string& text, Mix& mix) {
  const size_t equals = text.find('=');
  double share = -1;
  const char* end = text.data() + text.size();
  if (equals == text.npos || std::from_chars(text.data() + equals + 1, end, share).ptr != end ||
      !(share >= 0) || !std::isfinite(share)) {
    throw std::invalid_argument("--mix: expected TYPE=SHARE, as detail=23; found " + text);
  }
  mix[static_cast<size_t>(ResponseTypeNamed(text.substr(0, equals)))] = share;
}

// Whether the data set is what was asked for, but for a few records; tells what it lacks.
bool ToldWhole(const InstructEnd& end, double most_failed) {
  const double hundred_failed = 100 * static_cast<double>(end.failed);
  const auto planned = static_cast<double>(end.planned);
  const bool few = hundred_failed <= most_failed * planned;
  if (!few) {
    std::fprintf(stderr,
                 "llava-datagen: %.3g %% of the requests failed, more than --most-failed %g\n",
                 hundred_failed / planned, most_failed);
  }
  return end.replaced && few;
}

int Run(Flags& flags) {
  InstructOptions& options = flags.options;
  if (!flags.mix.empty()) options.mix = {};
  for (const std::string& share : flags.mix) ReadShare(share, options.mix);
  options.boxes = {};
  for (const std::string& type : flags.boxes) {
    if (type == "none") continue;
    options.boxes[static_cast<size_t>(ResponseTypeNamed(type))] = true;
  }
  options.language = flags.language == "any" ? Language::kAny : Language::kEnglish;
  options.detailed_questions = DetailedQuestions(flags.detailed_questions);
  options.request = flags.chat.Request();
  options.run = flags.chat.RunOptions();
  const PromptSet prompts = PromptSet::Read(flags.prompts);
  const auto teacher = flags.chat.OpenBackend();
  const std::vector<CaptionedImage> images = flags.source.Read();
  const StopRequest stop;
  const InstructEnd end = WriteInstructions(images, prompts, *teacher, options, stderr);
  switch (end.outcome) {
    case ChatRun::Outcome::kFinished:
      return ToldWhole(end, flags.most_failed) ? 0 : 1;
    case ChatRun::Outcome::kBudget:
      std::fprintf(stderr,
                   "llava-datagen: the budget is used up; what there is has been written, and the "
                   "same command with a larger one goes on from here\n");
      return kBudgetUsedUp;
    case ChatRun::Outcome::kStopped:
      break;
  }
  std::fprintf(stderr, "llava-datagen: stopped; the same command goes on from here\n");
  return 128 + StopRequest::Signal();
}

}  // namespace

std::function<int()> AddInstructCommand(CLI::App& app) {
  const auto flags = std::make_shared<Flags>();
  InstructOptions& options = flags->options;
  CLI::App* command = app.add_subcommand(
      "instruct", "Instruction data about pictures from a teacher that reads captions and boxes");
  flags->source.Add(*command);

  command
      ->add_option("--out", options.out, "Folder of the data set; goes on if one was begun there")
      ->required()
      ->group("Output");
  command
      ->add_option(
          "--journal", options.journal,
          "File of paid answers, may be shared by data sets (default: journal.jsonl in the "
          "folder)")
      ->group("Output");

  command
      ->add_option("--most-failed", flags->most_failed,
                   "Percentage of requests that may fail; beyond it the exit code is 1")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str()
      ->group("Output");

  command->add_option("--count", options.count, "Records to ask for (default: one a picture)")
      ->check(CLI::Range(uint64_t{1}, uint64_t{100'000'000}))
      ->group("Records");
  command
      ->add_option("--mix", flags->mix,
                   "Proportions of types (default, as the paper: "
                   "conversation=58,detail=23,complex=77)")
      ->delimiter(',')
      ->group("Records");
  command
      ->add_option("--boxes", flags->boxes,
                   "Types whose teacher is shown boxes, or none (as the paper: detail,complex)")
      ->delimiter(',')
      ->check(CLI::IsMember({"conversation", "detail", "complex", "none"}))
      ->capture_default_str()
      ->group("Records");
  command
      ->add_option("--seed", options.seed,
                   "Of which picture gets what, questions for descriptions, and places of <image>")
      ->capture_default_str()
      ->group("Records");
  command
      ->add_option("--prompts", flags->prompts,
                   "Folder of prompts instead of the built-in ones (see llava-datagen prompts)")
      ->group("Records");
  command
      ->add_option("--detailed-questions", flags->detailed_questions,
                   "File with questions for descriptions, one a line, instead of the built-in ones")
      ->group("Records");
  command->add_option("--language", flags->language, "Of answers: en, or any for no check")
      ->check(CLI::IsMember({"en", "any"}))
      ->capture_default_str()
      ->group("Records");
  flags->chat.Add(*command, "Teacher");
  return [flags] { return Run(*flags); };
}

}  // namespace llava
