#include "model/datagen/science_dataset.h"

#include <array>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/data/scenes/render.h"
#include "model/datagen/png.h"
#include "model/datagen/scene_problems.h"
#include "model/progress/progress.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

void WriteWhole(const std::filesystem::path& path, const std::string& content,
                StagedFile::Sync sync = StagedFile::Sync::kNow) {
  StagedFile file(path);
  file.Write(content);
  file.Commit(sync);
}

}  // namespace

bool WriteScienceDataset(const ScienceDatasetOptions& options, std::FILE* progress) {
  options.scenes.Check();
  const std::array<std::pair<const char*, uint64_t>, 3> splits = {
      {{"train", options.train}, {"val", options.val}, {"test", options.test}}};
  const uint64_t total = options.train + options.val + options.test;
  if (total == 0) throw std::invalid_argument("no problems in any split");
  const Json settings = {{"kind", "science"},
                         {"seed", options.seed},
                         {"train", options.train},
                         {"val", options.val},
                         {"test", options.test},
                         {"categories", options.scenes.num_categories},
                         {"objects", {options.scenes.min_objects, options.scenes.max_objects}},
                         {"repeats", options.scenes.repeats},
                         {"positions", options.scenes.positions},
                         {"held_out", options.scenes.held_out}};
  OutputFolder folder(options.out, settings, options.overwrite);
  SceneRenderer renderer;
  Progress bar(progress, "writing problems", total);
  Json problems = Json::object(), ids = Json::object();
  uint64_t number = 0, pictures = 0;
  for (const auto& [split, count] : splits) {
    ids[split] = Json::array();
    for (uint64_t i = 0; i < count; ++i, ++number) {
      if (StopRequest::Requested()) return false;
      SceneProblem problem = MakeSceneProblem(options.scenes, options.seed, number);
      const std::string id = std::to_string(number + 1);
      if (problem.scene) {
        const auto place = folder.images() / split / id;
        std::filesystem::create_directories(place);
        WriteWhole(place / "image.png", EncodePng(renderer.Render(*problem.scene)),
                   StagedFile::Sync::kLater);
        ++pictures;
      }
      problem.record["split"] = split;
      problems[id] = std::move(problem.record);
      ids[split].push_back(id);
      bar.Update(number + 1);
    }
  }
  bar.Finish(number);
  WriteWhole(options.out / "problems.json", problems.dump(1) + "\n");
  WriteWhole(options.out / "pid_splits.json", ids.dump() + "\n");
  folder.Finish({{"problems", total}, {"images", pictures}});
  return true;
}

}  // namespace llava
