#pragma once

// `llava-train pretrain-vision`: trains a CLIP tower on drawn scenes, from nothing, so that each
// patch feature of the layer that LLaVA reads says what stands there.

#include <memory>

#include "model/train/recipe.h"
#include "model/train/training_task.h"

namespace llava {

// Reads its settings from the recipe. Throws std::invalid_argument for settings that do not fit
// together and std::runtime_error for a tokenizer that cannot be read.
std::unique_ptr<TrainingTask> MakeVisionTask(Recipe& recipe, const TaskSettings& settings);

}  // namespace llava
