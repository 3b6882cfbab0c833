#pragma once

// Matrices with a trained difference of low rank (LoRA, Hu et al. 2021): W + scale B A.

#include <map>
#include <optional>
#include <string>

#include <c10/core/ScalarType.h>

#include "model/checkpoint/checkpoint.h"

namespace llava {

// The factors of one matrix W [out, in].
struct LowRankFactors {
  std::string a, b;  // names of A [r, in] and B [out, r]
  double scale = 1;
};

// Puts the sum in the place of each matrix of `tensors` that `factors` names. It is computed in
// float32 when it is asked for, and comes in `dtype` (none: W's own). A and B are tensors of
// `source`. Throws std::runtime_error that names every matrix that is not there or does not fit.
void AddLowRank(TensorSource& tensors, const TensorSource& source,
                std::map<std::string, LowRankFactors> factors,
                std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace llava
