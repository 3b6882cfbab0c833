#pragma once

// Multiple-choice problems about scenes, in the form of ScienceQA: some with a picture, some with a
// text, some with neither.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "model/data/scenes/scene.h"

namespace llava {

struct SceneProblem {
  // As in problems.json, without "split": "question", "choices", "answer", "hint", "image", "task",
  // "grade", "subject", "topic", "category", "skill", "lecture", "solution".
  nlohmann::ordered_json record;
  std::optional<Scene> scene;  // of the picture, if there is one
};

// Problem number `number` of the endless stream `seed`: what can be eaten, flies or lives, how many
// there are, what is in the picture (natural science); what is where (social science); plurals
// (language science); kinds of things told by a text (natural science). Its solution says first
// what is to be seen. A pure function. Throws std::invalid_argument as SceneOptions::Check, or if
// the scenes never have two things.
SceneProblem MakeSceneProblem(const SceneOptions& scenes, uint64_t seed, uint64_t number);

}  // namespace llava
