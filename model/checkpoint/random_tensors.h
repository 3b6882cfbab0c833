#pragma once

#include <cstdint>

#include <ATen/core/ScalarType.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/tensor_names.h"

namespace llava {

struct RandomTensorOptions {
  uint64_t seed = 0;
  at::ScalarType dtype = at::kBFloat16;  // or kFloat
  double outliers = 0;  // share of the matrices' elements that are 20 times as large
};

// Tensors that are made whenever they are asked for, so that a model of any size takes no memory:
// normal numbers of deviation 0.02, each a function of seed, name and place alone; the weights of
// norms are 1, biases 0.
TensorSource RandomTensors(const TensorShapes& shapes, const RandomTensorOptions& options);

}  // namespace llava
