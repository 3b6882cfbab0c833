#pragma once

// The choice of the next tokens on the device; as kernels.h.

#include <cstdint>

#include "model/ops/cuda/kernels.h"

namespace llava::cuda {

// How one token is chosen: by what model/llava/sampler.h says of these, without penalties.
struct DrawRow {
  double uniform;     // the random number, in [0, 1)
  float temperature;  // 0: the best
  float top_p, min_p;
  uint32_t top_k;  // 0: off
};

struct DrawArgs {
  const float* logits;  // [rows, stride]
  int64_t stride;
  int width;            // ids that may be chosen: [0, width), at least one
  const DrawRow* rows;  // [rows]
  int32_t* ids;         // [rows]; -1 if a logit is not finite
};
void Draw(const DrawArgs& args, int64_t rows, Stream stream);

}  // namespace llava::cuda
