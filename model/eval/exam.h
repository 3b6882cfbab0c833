#pragma once

// Questions about scenes that nobody was trained on: made on the fly from a seed, equally many of
// every type, and of every answer where a type has few.

#include <cstdint>
#include <vector>

#include "model/data/scenes/questions.h"
#include "model/data/scenes/scene.h"

namespace llava {

struct ExamOptions {
  SceneOptions scenes;
  // Names a stream of scenes apart from those of training, whatever the seeds there.
  uint64_t seed = 1;
  int per_type = 500;     // questions of each type, and whole chains
  MoreWordings wordings;  // without `brief` there is no kBrief
};

// One question, or a chain of them. A chain is held whole even where only some turns count: later
// ones refer to the answers before.
struct ExamDialogue {
  Dialogue turns;
  std::vector<bool> counted;  // per turn: whether it is one of its type's `per_type`
  bool whole = false;         // one of the `per_type` chains that must be right in all turns
};

// All dialogues are independent of each other. No type has two questions about one scene, but where
// a chain repeats one.
struct ExamScene {
  Scene scene;
  std::vector<ExamDialogue> dialogues;
};
using Exam = std::vector<ExamScene>;

// A pure function of the options. Types that the scenes do not allow (kThis without single objects)
// are left out, and such that they seldom allow may have fewer than `per_type` questions. Throws
// std::invalid_argument as SceneOptions::Check, or if per_type is less than 1.
Exam MakeExam(const ExamOptions& options);

}  // namespace llava
