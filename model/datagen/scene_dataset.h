#pragma once

// Data sets of scenes on disk, in the formats the trainer and the generator of instruction data
// read.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "model/data/scenes/questions.h"
#include "model/data/scenes/scene.h"
#include "model/datagen/output_folder.h"

namespace llava {

struct SceneDatasetOptions {
  std::filesystem::path out;
  uint64_t count = 1000;
  uint64_t first = 0;  // number of the first scene in the stream of `seed`
  uint64_t seed = 1;
  SceneOptions scenes;
  MoreWordings wordings;  // both lists must hold questions
  bool pictures = true;   // false: images/ stays empty, another data set has the same ones
  bool stage1 = false;
  bool stage1_detail = false;  // with stage1: a second record per scene, its detailed description
  bool stage2 = false;
  InstructionKinds kinds;  // of stage 2: which records, and what they ask
  size_t turns = 4;        // of a conversation, at least
  size_t dialogues = 0;  // with conversation in stage2: so many more records per scene, short ones
  int jobs = 0;          // threads that draw; 0: one a core
  bool overwrite = false;  // an older data set in `out`
};

// Writes images/NNNNNN.png, captions.json, instances.json (both COCO), with their flags stage1.json
// and stage2.json (LLaVA), and at last dataset.json. Equal options give equal bytes, whatever
// `jobs` is and however often the work was interrupted. Returns false if a StopRequest came: what
// is there is whole, and the same call goes on from it. Progress goes to `progress`. Throws
// std::invalid_argument for wrong options, FolderRefused, and std::runtime_error naming the file
// that cannot be written.
bool WriteSceneDataset(const SceneDatasetOptions& options, std::FILE* progress);

}  // namespace llava
