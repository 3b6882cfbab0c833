#pragma once

// A whole random model over the fixtures' tokenizer.

#include <ATen/core/Tensor.h>

#include "model/llava/llava.h"

namespace llava {

LanguageCheckpoint TinyLanguageCheckpoint();
Llava TinyLlava(at::ScalarType dtype = at::kFloat);
// Random Z_v of one picture: [9, 24].
at::Tensor TinyFeatures(uint64_t seed);

}  // namespace llava
