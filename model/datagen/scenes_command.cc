#include "model/datagen/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "model/data/questions/question_lists.h"
#include "model/data/scenes/scene_flags.h"
#include "model/datagen/scene_dataset.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

// What the flags hold before it is checked.
struct Flags {
  SceneDatasetOptions dataset;
  SceneFlags scenes;
  std::vector<std::string> kinds = InstructionKinds().Names();
  std::string brief_questions, detailed_questions;  // files; built-in lists if empty
  bool no_pictures = false;
};

int Run(Flags& flags) {
  SceneDatasetOptions& options = flags.dataset;
  options.scenes = flags.scenes.Options();
  options.pictures = !flags.no_pictures;
  options.kinds = InstructionKinds::Named(flags.kinds);
  options.wordings = {BriefQuestions(flags.brief_questions),
                      DetailedQuestions(flags.detailed_questions)};
  const StopRequest stop;
  if (WriteSceneDataset(options, stderr)) return 0;
  std::fprintf(stderr, "llava-datagen: stopped; the same command goes on from here\n");
  return 128 + StopRequest::Signal();
}

}  // namespace

std::function<int()> AddScenesCommand(CLI::App& app) {
  const auto flags = std::make_shared<Flags>();
  SceneDatasetOptions& dataset = flags->dataset;
  CLI::App* command = app.add_subcommand(
      "scenes", "Pictures of emoji scenes with captions, boxes and instruction data");

  command->add_option("--out", dataset.out, "Folder of the data set, new or empty")
      ->required()
      ->group("Output");
  CLI::Option* stage1 =
      command->add_flag("--stage1", dataset.stage1, "Write stage1.json: brief question, caption")
          ->group("Output");
  command
      ->add_flag("--stage1-detail", dataset.stage1_detail,
                 "A second record per picture in stage1.json: its detailed description")
      ->needs(stage1)
      ->group("Output");
  CLI::Option* stage2 =
      command
          ->add_flag("--stage2", dataset.stage2,
                     "Write stage2.json: conversations, detailed descriptions, reasoning")
          ->group("Output");
  command
      ->add_option("--kinds", flags->kinds,
                   "Of stage2.json, separated by commas: its records, and what conversations and "
                   "dialogues ask")
      ->delimiter(',')
      ->check(CLI::IsMember(InstructionKinds().Names()))
      ->capture_default_str()
      ->needs(stage2)
      ->group("Output");
  command
      ->add_flag("--no-pictures", flags->no_pictures,
                 "Draw none: for other records about the pictures of another data set")
      ->group("Output");
  command
      ->add_flag("--overwrite", dataset.overwrite,
                 "Replace the data set in the folder (an interrupted one is continued without)")
      ->group("Output");

  command->add_option("--count", dataset.count, "Number of scenes")
      ->check(CLI::Range(uint64_t{1}, uint64_t{100'000'000}))
      ->capture_default_str()
      ->group("Scenes");
  command->add_option("--seed", dataset.seed, "Stream of scenes; equal seeds give equal bytes")
      ->capture_default_str()
      ->group("Scenes");
  command->add_option("--first", dataset.first, "Number of the first scene in the stream")
      ->check(CLI::Range(uint64_t{0}, uint64_t{1'000'000'000'000}))
      ->capture_default_str()
      ->group("Scenes");
  flags->scenes.Add(*command);

  command->add_option("--turns", dataset.turns, "Turns of a conversation, at least")
      ->check(CLI::Range(1, 50))
      ->capture_default_str()
      ->group("Text");
  command
      ->add_option("--dialogues", dataset.dialogues,
                   "More records per picture in stage2.json: so many short dialogues")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str()
      ->needs(stage2)
      ->group("Text");
  command
      ->add_option("--brief-questions", flags->brief_questions,
                   "File with questions for captions, one a line, instead of the built-in ones")
      ->group("Text");
  command
      ->add_option("--detailed-questions", flags->detailed_questions,
                   "File with questions for detailed descriptions, likewise")
      ->group("Text");
  command->add_option("--jobs", dataset.jobs, "Threads that draw; 0 is one a core")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  return [flags] { return Run(*flags); };
}

}  // namespace llava
