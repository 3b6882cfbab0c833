#pragma once

#include <functional>

#include <ATen/core/Tensor.h>

namespace llava {

// step(input), of which only `input` is kept for the backward pass; that runs the step again (Chen
// et al. 2016). Gradients reach `input` and every leaf that the step uses. `step` must give the
// same result again, outlive the graph with all it refers to, and may be called on autograd's
// thread. An input that needs no gradient is stepped the plain way.
at::Tensor Checkpoint(std::function<at::Tensor(const at::Tensor&)> step, const at::Tensor& input);

}  // namespace llava
