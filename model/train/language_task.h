#pragma once

// `llava-train pretrain-lm`: trains a base language model on maps of words, so that it knows
// scenes, questions and facts before it ever sees a picture.

#include <memory>

#include "model/train/recipe.h"
#include "model/train/training_task.h"

namespace llava {

// Reads its settings from the recipe. Throws std::invalid_argument for settings that do not fit
// together and std::runtime_error for a tokenizer that cannot be read.
std::unique_ptr<TrainingTask> MakeLanguageTask(Recipe& recipe, const TaskSettings& settings);

}  // namespace llava
