#pragma once

#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"

namespace llava {

// A source of tensors that lie in memory, under canonical names: fresh parameters on their way into
// a module, trained ones on their way into a checkpoint. Shares their memory.
TensorSource MemoryTensors(std::map<std::string, at::Tensor> tensors);
// Puts them into `source`, in place of its own of the same names.
void ReplaceTensors(TensorSource& source, std::map<std::string, at::Tensor> tensors);

}  // namespace llava
