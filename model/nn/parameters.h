#pragma once

#include <functional>
#include <string>

#include <ATen/core/Tensor.h>

namespace llava {

// Called with the canonical checkpoint name of a parameter and the parameter itself, so that it can
// be read, replaced or marked for training. Always in the same order.
using ParameterVisitor = std::function<void(const std::string& name, at::Tensor& parameter)>;

}  // namespace llava
