#pragma once

// Reads the parameters of a module and tells everything that is wrong at once.

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"

namespace llava {

// One thread.
class ParameterReader {
 public:
  ParameterReader(const TensorSource& tensors, at::Device device, at::ScalarType dtype)
      : tensors_(tensors), device_(device), dtype_(dtype) {}

  // A copy of the tensor in memory of its own. Missing or misshapen: notes it, returns an undefined
  // tensor, and Finish will throw.
  at::Tensor Read(const std::string& name, at::IntArrayRef shape);
  // Nothing was missing or misshapen so far.
  bool complete() const { return faults_.empty(); }
  // Throws std::runtime_error naming `module` and every tensor that was missing or misshapen.
  void Finish(const std::string& module) const;

 private:
  const TensorSource& tensors_;
  at::Device device_;
  at::ScalarType dtype_;
  std::vector<std::string> faults_;
};

}  // namespace llava
