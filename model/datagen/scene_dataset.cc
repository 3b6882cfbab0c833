#include "model/datagen/scene_dataset.h"

#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "model/checkpoint/durable_file.h"
#include "model/data/scenes/render.h"
#include "model/datagen/png.h"
#include "model/datagen/scene_records.h"
#include "model/progress/for_each.h"
#include "model/progress/progress.h"
#include "model/progress/stop_request.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;
using Positions = SceneOptions::Positions;
using HeldOut = SceneOptions::HeldOut;

// All that decides the bytes of the data set.
Json Settings(const SceneDatasetOptions& options) {
  const SceneOptions& scenes = options.scenes;
  return {{"format", "llava-datagen scenes 1"},
          {"seed", options.seed},
          {"first", options.first},
          {"count", options.count},
          {"categories", scenes.num_categories},
          {"objects", {scenes.min_objects, scenes.max_objects}},
          {"object_weights", scenes.object_weights},
          {"repeats", scenes.repeats},
          {"positions", scenes.positions == Positions::kSnapped ? "snapped" : "free"},
          {"held_out", scenes.held_out == HeldOut::kTrain   ? "train"
                       : scenes.held_out == HeldOut::kPairs ? "pairs"
                                                            : "any"},
          {"pictures", options.pictures},
          {"stage1", options.stage1},
          {"stage1_detail", options.stage1_detail},
          {"stage2", options.stage2},
          {"kinds", options.kinds.Names()},
          {"turns", options.turns},
          {"dialogues", options.dialogues},
          {"brief_questions", options.wordings.brief},
          {"detailed_questions", options.wordings.detailed}};
}

void Check(const SceneDatasetOptions& options) {
  options.scenes.Check();
  if (options.count == 0) throw std::invalid_argument("a data set of 0 scenes");
  if (options.turns == 0) throw std::invalid_argument("conversations of 0 turns");
  if (options.stage1_detail && !options.stage1) {
    throw std::invalid_argument("detailed descriptions for stage 1 without stage 1");
  }
  if (options.dialogues > 0 && !options.stage2) {
    throw std::invalid_argument("short dialogues are for stage 2, which is not asked for");
  }
  if (options.stage2 && options.kinds.Names().empty()) {
    throw std::invalid_argument("stage 2 without any kind of record");
  }
  if (options.dialogues > 0 && !options.kinds.conversation) {
    throw std::invalid_argument("short dialogues are conversation, which is not among the kinds");
  }
  if (options.wordings.brief.empty() || options.wordings.detailed.empty()) {
    throw std::invalid_argument("the lists of brief and detailed questions must not be empty");
  }
}

// Writes what it is told to, one scene after the other.
class Writer {
 public:
  Writer(const SceneDatasetOptions& options, OutputFolder& folder, std::FILE* progress)
      : options_(options),
        folder_(folder),
        progress_(progress),
        records_(options.scenes.num_categories, options.wordings, options.turns, options.seed,
                 options.kinds) {}

  // False if a stop was requested.
  bool DrawPictures();
  bool WriteCoco(const char* name, const char* what,
                 const std::function<std::vector<Json>(const Scene&, uint64_t, uint64_t)>& annotate,
                 uint64_t& annotations);
  bool WriteInstructions(const char* name,
                         const std::function<std::vector<Json>(const Scene&, uint64_t)>& tell,
                         uint64_t& records);

  bool WriteAll(Json& contents);

 private:
  Scene At(uint64_t number) const { return SampleScene(options_.scenes, options_.seed, number); }
  // Elements of a JSON array, one a line, for every scene; false if a stop was requested.
  bool WriteElements(StagedFile& file, const std::function<std::vector<Json>(uint64_t)>& make);

  const SceneDatasetOptions& options_;
  OutputFolder& folder_;
  std::FILE* progress_;
  InstructionRecords records_;
};

bool Writer::DrawPictures() {
  std::vector<uint64_t> missing;  // of an interrupted run
  for (uint64_t i = 0; i < options_.count; ++i) {
    const uint64_t number = options_.first + i;
    const auto path = folder_.images() / SceneFileName(number);
    // Pictures are synced at the end: a power cut may have left their names without their bytes.
    if (!folder_.resumed() || !std::filesystem::exists(path) || !IsWholePng(ReadSmallFile(path))) {
      missing.push_back(number);
    }
  }
  const uint64_t before = options_.count - missing.size();
  Progress progress(progress_, "drawing", options_.count, before);
  std::mutex mutex;  // guards the bar and what follows
  uint64_t done = 0;
  ForEach(std::ssize(missing), options_.jobs, [&] {
    return [&, renderer = std::make_shared<SceneRenderer>()](int64_t i) {
      if (StopRequest::Requested()) return;
      StagedFile file(folder_.images() / SceneFileName(missing[i]));
      file.Write(EncodePng(renderer->Render(At(missing[i]))));
      file.Commit(StagedFile::Sync::kLater);
      const std::lock_guard lock(mutex);
      progress.Update(before + ++done);
    };
  });
  progress.Finish(before + done);
  return done == missing.size();
}

bool Writer::WriteElements(StagedFile& file,
                           const std::function<std::vector<Json>(uint64_t)>& make) {
  const char* separator = "[\n";
  for (uint64_t i = 0; i < options_.count; ++i) {
    if (StopRequest::Requested()) return false;
    for (const Json& element : make(options_.first + i)) {
      file.Write(separator);
      file.Write(element.dump());
      separator = ",\n";
    }
  }
  file.Write("\n]");
  return true;
}

bool Writer::WriteCoco(
    const char* name, const char* what,
    const std::function<std::vector<Json>(const Scene&, uint64_t, uint64_t)>& annotate,
    uint64_t& annotations) {
  StagedFile file(folder_.path() / name);
  const Json info = {{"description", std::string("emoji scenes: ") + what}, {"version", "1"}};
  file.Write("{\"info\": " + info.dump() + ",\n\"categories\": " +
             CocoCategories(options_.scenes.num_categories).dump() + ",\n\"images\": ");
  if (!WriteElements(file, [](uint64_t number) { return std::vector{CocoImage(number)}; })) {
    return false;
  }
  file.Write(",\n\"annotations\": ");
  const auto elements = [&](uint64_t number) {
    auto made = annotate(At(number), number, annotations + 1);  // ids count from 1
    annotations += made.size();
    return made;
  };
  if (!WriteElements(file, elements)) return false;
  file.Write("}\n");
  file.Commit();
  return true;
}

bool Writer::WriteInstructions(const char* name,
                               const std::function<std::vector<Json>(const Scene&, uint64_t)>& tell,
                               uint64_t& records) {
  StagedFile file(folder_.path() / name);
  const auto elements = [&](uint64_t number) {
    auto made = tell(At(number), number);
    records += made.size();
    return made;
  };
  if (!WriteElements(file, elements)) return false;
  file.Write("\n");
  file.Commit();
  return true;
}

bool Writer::WriteAll(Json& contents) {
  uint64_t captions = 0, instances = 0, stage1 = 0, stage2 = 0;
  const auto brief = [&](const Scene& scene, uint64_t number) {
    std::vector<Json> records;
    records.push_back(records_.Brief(scene, number));
    if (options_.stage1_detail) {
      if (auto detail = records_.Detail(scene, number)) records.push_back(std::move(*detail));
    }
    return records;
  };
  const auto instructions = [&](const Scene& scene, uint64_t number) {
    std::vector<Json> records = records_.Instructions(scene, number);
    for (Json& record : records_.Dialogues(scene, number, options_.dialogues)) {
      records.push_back(std::move(record));
    }
    return records;
  };
  if ((options_.pictures && !DrawPictures()) ||
      !WriteCoco("captions.json", "captions", CocoCaptions, captions) ||
      !WriteCoco("instances.json", "boxes", CocoInstances, instances) ||
      (options_.stage1 && !WriteInstructions("stage1.json", brief, stage1)) ||
      (options_.stage2 && !WriteInstructions("stage2.json", instructions, stage2))) {
    return false;
  }
  contents = {{"images", options_.pictures ? options_.count : 0},
              {"captions", captions},
              {"instances", instances},
              {"stage1_records", stage1},
              {"stage2_records", stage2}};
  return true;
}

}  // namespace

bool WriteSceneDataset(const SceneDatasetOptions& options, std::FILE* progress) {
  Check(options);
  OutputFolder folder(options.out, Settings(options), options.overwrite);
  Writer writer(options, folder, progress);
  Json contents;
  if (!writer.WriteAll(contents)) return false;
  folder.Finish(contents);
  return true;
}

}  // namespace llava
