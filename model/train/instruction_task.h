#pragma once

// `llava-train align` and `llava-train finetune`: the paper's two stages.

#include <cstdio>
#include <memory>

#include "model/train/instruction_settings.h"
#include "model/train/training_task.h"

namespace llava {

// Opens model and tower and looks at every record; of pictures it reads the headers, Check()
// decodes them. `progress`: shows a bar meanwhile, if not null. Throws std::invalid_argument for
// settings that do not fit together and std::runtime_error for a model that cannot be opened and,
// unless bad records are to be skipped, listing the first of them.
std::unique_ptr<TrainingTask> MakeInstructionTask(InstructionStage stage, Recipe& recipe,
                                                  const TaskSettings& settings,
                                                  std::FILE* progress = nullptr);

}  // namespace llava
