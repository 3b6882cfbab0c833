// llava-train: makes every checkpoint of this project, from nothing to the finished chat model.
#include <malloc.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "model/progress/guarded.h"
#include "model/train/plot.h"
#include "model/train/tokenizer_command.h"
#include "model/train/train_command.h"

namespace {

using llava::TrainCommand;

const char* Describe(const std::string& kind) {
  if (kind == "pretrain-vision") return "Train a CLIP tower on drawn scenes, from nothing";
  if (kind == "pretrain-lm") return "Train a base language model on scenes in words";
  if (kind == "align") return "Stage 1: train the projector alone";
  return "Stage 2: train projector and language model";
}

void AddRecipeFlags(CLI::App& app, TrainCommand& command) {
  app.add_option("--recipe", command.recipe, "Settings of the run, a JSON file")
      ->check(CLI::ExistingFile);
  app.add_option("--set", command.settings, "key=value: one setting, over the recipe's")
      ->allow_extra_args(false);
}

std::function<int()> AddTraining(CLI::App& app, const std::string& kind) {
  const auto command = std::make_shared<TrainCommand>();
  const auto dry = std::make_shared<bool>(false);
  const auto skip = std::make_shared<bool>(false);
  command->kind = kind;
  CLI::App* sub = app.add_subcommand(kind, Describe(kind));
  AddRecipeFlags(*sub, *command);
  CLI::Option* out = sub->add_option("--out", command->run_folder,
                                     "Run folder: log and states; the same command goes on in it");
  CLI::Option* publish = sub->add_option("--publish", command->repository,
                                         "Model repository that the outcome is published in");
  CLI::Option* name = sub->add_option("--name", command->name, "Name in the repository");
  publish->needs(name);
  name->needs(publish);
  sub->add_flag("--dry-run", *dry, "Check all data, estimate time and memory, train nothing")
      ->excludes(publish);
  sub->add_flag("--skip-bad", *skip, "Leave bad records out, counted, instead of refusing them");
  const auto device = std::make_shared<std::string>();
  sub->add_option("--device", *device,
                  "cpu, cuda:N, several with commas or cuda:all; as --set device=...");
  sub->add_option("--metrics-listen", command->metrics_address,
                  "IP:PORT where Prometheus finds /metrics during the run");
  return [=] {
    if (*skip) command->settings.push_back("skip_bad=true");
    if (!device->empty()) command->settings.push_back("device=" + *device);
    if (*dry) {
      llava::RunDry(*command, stderr);
      return 0;
    }
    if (out->count() == 0) throw std::invalid_argument("--out is missing: the folder of the run");
    return llava::RunTraining(*command, stderr);
  };
}

std::function<int()> AddDescribe(CLI::App& app) {
  const auto command = std::make_shared<TrainCommand>();
  CLI::App* sub = app.add_subcommand("describe", "Print all settings of a kind of training");
  sub->add_option("kind", command->kind, "Kind of training")
      ->required()
      ->check(CLI::IsMember(llava::TrainingKinds()));
  AddRecipeFlags(*sub, *command);
  return [=] {
    llava::RunDescribe(*command);
    return 0;
  };
}

std::function<int()> AddTokenizer(CLI::App& app) {
  const auto command = std::make_shared<llava::TokenizerCommand>();
  CLI::App* sub = app.add_subcommand("tokenizer", "Train a tokenizer with spm_train");
  sub->add_option("--out", command->output, "Folder of the tokenizer")->required();
  sub->add_option("--text", command->texts,
                  "Text, a sentence a line, or LLaVA's JSON; none: text about scenes")
      ->check(CLI::ExistingFile);
  sub->add_option("--vocabulary", command->vocabulary, "Pieces in all")
      ->check(CLI::Range(300, 1'000'000))
      ->capture_default_str();
  sub->add_option("--categories", command->num_categories,
                  "Kinds of things in the scenes: 48 or 96")
      ->check(CLI::IsMember({48, 96}))
      ->capture_default_str();
  sub->add_option("--scenes", command->scenes, "Scenes that the text is about")
      ->check(CLI::Range(100, 10'000'000))
      ->capture_default_str();
  sub->add_option("--seed", command->seed, "Of the scenes")->capture_default_str();
  sub->add_option("--template", command->chat_template, "Chat template whose marks become pieces")
      ->capture_default_str();
  return [=] {
    const llava::TokenizerSummary summary = llava::TrainTokenizer(*command);
    std::fprintf(stderr, "llava-train: %lld pieces from %lld lines, %.3f tokens a word\n",
                 static_cast<long long>(summary.vocabulary), static_cast<long long>(summary.lines),
                 summary.tokens_per_word);
    std::printf("%s\n", command->output.c_str());
    return 0;
  };
}

std::function<int()> AddPlot(CLI::App& app) {
  struct Flags {
    std::vector<std::filesystem::path> runs;
    std::filesystem::path out;
    llava::PlotOptions options;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* sub = app.add_subcommand("plot", "Draw the curves of runs into a PNG");
  sub->add_option("runs", flags->runs, "Run folders or metrics.jsonl files")
      ->required()
      ->check(CLI::ExistingPath);
  sub->add_option("--out", flags->out, "PNG file")->required();
  sub->add_option("--figure", flags->options.figures,
                  "What to draw, a chart each; a+b puts two into one; none: the usual ones");
  sub->add_flag("--log", flags->options.log, "Logarithmic vertical axes");
  sub->add_option("--columns", flags->options.columns, "Charts side by side")
      ->check(CLI::Range(1, 6))
      ->capture_default_str();
  return [=] {
    llava::PlotMetrics(flags->runs, flags->out, flags->options);
    return 0;
  };
}

// Every step asks for the same large blocks and frees them. Left to itself, the C library gives
// them back to the system, and a tenth of a step goes into fresh pages.
void KeepFreedMemory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);  // never
}

}  // namespace

int main(int argc, char** argv) {
  KeepFreedMemory();
  CLI::App app("Trains LLaVA models: base parts, stage 1, stage 2", "llava-train");
  app.set_version_flag("--version", "llava-train " LLAVA_VERSION);
  app.set_help_all_flag("--help-all", "Print the help of all commands and exit");
  app.require_subcommand(1);
  std::map<std::string, std::function<int()>> commands;
  for (const std::string& kind : llava::TrainingKinds()) commands[kind] = AddTraining(app, kind);
  commands["describe"] = AddDescribe(app);
  commands["tokenizer"] = AddTokenizer(app);
  commands["plot"] = AddPlot(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "llava-train: %s (see --help)\n", error.what());
    return 2;
  }
  return llava::RunGuarded("llava-train", commands.at(app.get_subcommands().front()->get_name()));
}
