#pragma once

// Parameters that nothing has trained yet, as the measured recipe of the embedded default draws
// them.

#include <cstdint>
#include <map>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>

#include "model/config/model_config.h"

namespace llava {

using NamedTensors = std::map<std::string, at::Tensor>;

// Draws float32 tensors; equal seeds and calls give equal ones. One thread.
class FreshWeights {
 public:
  explicit FreshWeights(uint64_t seed)
      : generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {}

  at::Tensor Normal(at::IntArrayRef shape, double deviation);
  // A linear layer as PyTorch draws it, weight [out, in] and bias [out]: uniform within +-in^-0.5.
  void Linear(const std::string& name, int64_t out, int64_t in, bool bias, NamedTensors& into);
  // name.weight 1, name.bias 0.
  static void Norm(const std::string& name, int64_t width, NamedTensors& into);

  // A block of CLIP (model/nn/clip_block.h).
  void ClipBlock(const std::string& name, int64_t width, int64_t inner, NamedTensors& into);

  // All tensors of a CLIP tower, the post-norm included.
  NamedTensors Tower(const VisionConfig& config);
  // LLaMA with a "mimetic" start: queries and keys are nearly the same turn of their input, so that
  // equal content attracts, and the output undoes the turn of the values, so that attended content
  // is copied from the first step on.
  NamedTensors Decoder(const DecoderConfig& config);
  // A projector as PyTorch draws it, its last layer times `last_layer`: with kSmallLayer image
  // tokens begin near the size of words.
  static constexpr double kSmallLayer = 0.3;
  NamedTensors Projector(const ProjectorConfig& config, double last_layer = 1);

 private:
  // [rows, columns] with orthonormal rows or columns.
  at::Tensor Orthogonal(int64_t rows, int64_t columns);

  at::Generator generator_;
};

}  // namespace llava
