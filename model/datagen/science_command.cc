#include "model/datagen/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <memory>

#include "model/data/scenes/scene_flags.h"
#include "model/datagen/science_dataset.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

struct Flags {
  ScienceDatasetOptions dataset;
  SceneFlags scenes;
};

int Write(Flags& flags) {
  flags.dataset.scenes = flags.scenes.Options();
  const StopRequest stop;
  if (WriteScienceDataset(flags.dataset, stderr)) return 0;
  std::fprintf(stderr, "llava-datagen: stopped; the same command begins anew\n");
  return 128 + StopRequest::Signal();
}

}  // namespace

std::function<int()> AddScienceCommand(CLI::App& app) {
  const auto flags = std::make_shared<Flags>();
  ScienceDatasetOptions& dataset = flags->dataset;
  CLI::App* command = app.add_subcommand(
      "science", "Multiple-choice problems about emoji scenes, laid out as ScienceQA");
  command->add_option("--out", dataset.out, "Folder of the data set, new or empty")->required();
  command->add_flag("--overwrite", dataset.overwrite, "Replace the data set in the folder");
  const auto most = CLI::Range(uint64_t{0}, uint64_t{1'000'000});
  command->add_option("--train", dataset.train, "Problems to train on")
      ->check(most)
      ->capture_default_str();
  command->add_option("--val", dataset.val, "Problems to choose by")
      ->check(most)
      ->capture_default_str();
  command->add_option("--test", dataset.test, "Problems to measure by")
      ->check(most)
      ->capture_default_str();
  command->add_option("--seed", dataset.seed, "Stream of problems; equal seeds give equal bytes")
      ->capture_default_str();
  flags->scenes.Add(*command);
  return [flags] { return Write(*flags); };
}

}  // namespace llava
