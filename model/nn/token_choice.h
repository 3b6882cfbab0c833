#pragma once

#include <cstdint>

namespace llava {

// How the next token behind a row of logits is chosen where nothing but the logits counts: see
// SamplingOptions in model/llava/sampler.h, whose penalties look at earlier tokens.
struct TokenChoice {
  float temperature = 0;  // 0: the best
  float top_p = 1, min_p = 0;
  uint32_t top_k = 0;  // 0: all
  double uniform = 0;  // random number of [0, 1)
};

}  // namespace llava
