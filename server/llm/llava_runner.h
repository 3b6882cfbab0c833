#pragma once

#include <memory>
#include <optional>

#include "model/checkpoint/checkpoint.h"
#include "model/llava/serving_model.h"
#include "server/llm/model_runner.h"

namespace llava {

// A worker's runner over a model that is loaded. For the thread that will step it. `self_test`: the
// checkpoint's.
std::unique_ptr<ModelRunner> MakeLlavaRunner(std::unique_ptr<ServingModel> model,
                                             std::optional<SelfTest> self_test);

}  // namespace llava
