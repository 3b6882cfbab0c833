// The smaller commands about words: expand, questions, prompts.
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/data/questions/question_lists.h"
#include "model/datagen/commands.h"
#include "model/datagen/instruct.h"
#include "model/datagen/question_request.h"
#include "model/datagen/source_flags.h"
#include "model/openai/chat_flags.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

struct ExpandFlags {
  SourceFlags source;
  std::string out, brief_questions;
  uint64_t seed = 1;
};

int Expand(const ExpandFlags& flags) {
  const auto questions = BriefQuestions(flags.brief_questions);
  const auto images = flags.source.Read();
  WriteExpansion(images, questions, flags.seed, flags.out);
  std::fprintf(stderr, "%s: %zu records\n", flags.out.c_str(), images.size());
  return 0;
}

struct QuestionsFlags {
  ChatFlags chat{TeacherDefaults()};
  std::string type = "brief", out, prompts, journal;
  int count = 0;
};

// Where nothing is to be kept: the file has no name any more.
std::unique_ptr<ChatJournal> NamelessJournal() {
  std::string path = (fs::temp_directory_path() / "llava-questions-XXXXXX").string();
  const int file = mkstemp(path.data());
  if (file < 0) throw std::runtime_error(path + ": cannot be made: " + std::strerror(errno));
  close(file);
  auto journal = std::make_unique<ChatJournal>(path);
  fs::remove(path);
  return journal;
}

int AskQuestions(const QuestionsFlags& flags) {
  const bool detailed = flags.type == "detail";
  const QuestionRequest request = {.detailed = detailed,
                                   .count = flags.count > 0 ? flags.count
                                            : detailed      ? 16
                                                            : 11,
                                   .defaults = flags.chat.Request(),
                                   .run = flags.chat.RunOptions()};
  const PromptSet prompts = PromptSet::Read(flags.prompts);
  const auto teacher = flags.chat.OpenBackend();
  const std::string kept =
      !flags.journal.empty() || flags.out.empty() ? flags.journal : flags.out + ".journal";
  const auto journal = kept.empty() ? NamelessJournal() : std::make_unique<ChatJournal>(kept);
  const StopRequest stop;
  std::vector<std::string> questions;
  switch (AskForQuestions(*teacher, *journal, prompts, request, questions)) {
    case ChatRun::Outcome::kFinished:
      break;
    case ChatRun::Outcome::kBudget:
      std::fprintf(stderr, "llava-datagen: the budget is used up before there are %d questions\n",
                   request.count);
      return 3;
    case ChatRun::Outcome::kStopped:
      return 128 + StopRequest::Signal();
  }
  std::string text;
  for (const std::string& question : questions) text += question + "\n";
  if (flags.out.empty()) {
    std::fputs(text.c_str(), stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
  }
  WriteDurably(flags.out, text);
  return 0;
}

int WritePrompts(const fs::path& folder) {
  if (fs::exists(folder) && !fs::is_empty(folder)) {
    throw std::invalid_argument(folder.string() + " is not empty; name another folder");
  }
  for (const auto& [name, text] : BuiltInPromptFiles()) {
    fs::create_directories((folder / name).parent_path());
    WriteDurably(folder / name, text);
  }
  return 0;
}

}  // namespace

std::function<int()> AddExpandCommand(CLI::App& app) {
  const auto flags = std::make_shared<ExpandFlags>();
  CLI::App* command = app.add_subcommand(
      "expand", "Stage 1 without a teacher: a brief question, answered with a caption");
  flags->source.Add(*command);
  command->add_option("--out", flags->out, "File of LLaVA JSON")->required();
  command->add_option("--brief-questions", flags->brief_questions,
                      "File with questions, one a line, instead of the built-in ones");
  command->add_option("--seed", flags->seed, "Of questions, captions and places of <image>")
      ->capture_default_str();
  return [flags] { return Expand(*flags); };
}

std::function<int()> AddQuestionsCommand(CLI::App& app) {
  const auto flags = std::make_shared<QuestionsFlags>();
  CLI::App* command =
      app.add_subcommand("questions", "Asks a teacher for a list of questions about pictures");
  command->add_option("--type", flags->type, "For captions (brief) or descriptions (detail)")
      ->check(CLI::IsMember({"brief", "detail"}))
      ->capture_default_str();
  command->add_option("-n,--count", flags->count, "How many (default, as the paper: 11 or 16)")
      ->check(CLI::Range(1, 1000));
  command->add_option("--out", flags->out, "File, one question a line (default: standard output)");
  command->add_option("--journal", flags->journal,
                      "File of paid answers (default: OUT.journal; without --out none is kept)");
  command->add_option("--prompts", flags->prompts,
                      "Folder of prompts instead of the built-in ones");
  flags->chat.Add(*command, "Teacher");
  return [flags] { return AskQuestions(*flags); };
}

std::function<int()> AddPromptsCommand(CLI::App& app) {
  const auto folder = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "prompts", "Writes the built-in prompts into a folder, to be changed and named by --prompts");
  command->add_option("--out", *folder, "New or empty folder")->required();
  return [folder] { return WritePrompts(*folder); };
}

}  // namespace llava
