#pragma once

// A set of problems about scenes on disk, laid out as ScienceQA.

#include <cstdint>
#include <cstdio>
#include <filesystem>

#include "model/data/scenes/scene.h"
#include "model/datagen/output_folder.h"

namespace llava {

struct ScienceDatasetOptions {
  std::filesystem::path out;
  uint64_t train = 1200, val = 200, test = 400;  // problems of each split
  uint64_t seed = 1;
  SceneOptions scenes;
  bool overwrite = false;  // an older data set in `out`
};

// Writes problems.json, pid_splits.json, images/<split>/<id>/image.png and at last dataset.json.
// Equal options give equal bytes. Problems of different splits are never the same number of the
// stream. Returns false if a StopRequest came: the same call begins anew. Throws as
// WriteSceneDataset.
bool WriteScienceDataset(const ScienceDatasetOptions& options, std::FILE* progress);

}  // namespace llava
