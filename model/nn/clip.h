#pragma once

// CLIP ViT: pixels to hidden states. Radford et al. 2021; key names of transformers'
// CLIPVisionModel.

#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/nn/clip_block.h"
#include "model/nn/parameters.h"

namespace llava {

// How many blocks come before the hidden state `layer` (negative: from the end) of a tower that is
// given `pixels`. Throws std::invalid_argument if there is no such layer or the tower takes other
// pixels.
int64_t BlocksBefore(const VisionConfig& config, at::IntArrayRef pixels, int64_t layer);

// Forward is const and thread-safe (one thread per device is the rule of the pool); the parameters
// change only through VisitParameters.
class ClipTower {
 public:
  // Loads every tensor of the tower, the post-norm if there is one; throws naming all that are
  // missing or misshapen.
  ClipTower(const VisionConfig& config, const TensorSource& tensors, at::Device device,
            at::ScalarType dtype);

  // pixels [B, 3, S, S] -> the hidden state `layer` [B, P + 1, Dv]: 0 is the embeddings after the
  // pre-norm, k the output of block k, negative counts from the end. Later blocks are not run and
  // no post-norm is applied. `hidden_states`: if given, receives the hidden states before it, 0 on.
  // Throws std::invalid_argument for a layer out of range.
  at::Tensor Forward(const at::Tensor& pixels, int64_t layer,
                     std::vector<at::Tensor>* hidden_states = nullptr) const;
  // Z_v: hidden state and rows as `features` says. [B, P or P + 1, Dv].
  at::Tensor Features(const at::Tensor& pixels, const FeatureConfig& features) const;
  // What CLIP compares with texts, before its projection: the class token of the last hidden state
  // [B, P + 1, Dv] after the post-norm, [B, Dv]. Throws std::logic_error if there is no post-norm.
  at::Tensor ClassFeature(const at::Tensor& last_hidden) const;

  // See ClipBlock about parts of one matrix.
  void VisitParameters(const ParameterVisitor& visit);

  const VisionConfig& config() const { return config_; }
  at::Device device() const { return device_; }
  at::ScalarType dtype() const { return dtype_; }

 private:
  VisionConfig config_;
  at::Device device_;
  at::ScalarType dtype_;
  at::Tensor class_embedding_;     // [Dv]
  at::Tensor patch_embedding_;     // [Dv, 3, patch, patch], no bias
  at::Tensor position_embedding_;  // [P + 1, Dv]
  at::Tensor pre_norm_weight_, pre_norm_bias_;
  at::Tensor post_norm_weight_, post_norm_bias_;  // undefined: there is none
  std::vector<ClipBlock> blocks_;
};

}  // namespace llava
