#include "model/eval/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <memory>
#include <string>

#include "model/eval/asking/answer_flags.h"

namespace llava {
namespace {

struct Flags {
  std::string questions, pictures;
  AnswerFlags answer;
};

}  // namespace

std::function<int()> AddAnswerCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "answer", "Answers of a checkpoint or a server to a file of questions, for judge and vqa");
  const auto flags = std::make_shared<Flags>();
  command
      ->add_option("--questions", flags->questions,
                   "JSON lines (\"question_id\", \"text\", \"image\") or instruction data")
      ->required();
  command->add_option("--pictures", flags->pictures, "Folder that \"image\" is relative to");
  flags->answer.Add(*command);
  return [flags] {
    return flags->answer.Answer(ReadVisualQuestions(flags->questions, flags->pictures));
  };
}

}  // namespace llava
