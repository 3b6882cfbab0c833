#pragma once

// CLIP ViT: pixels to hidden states. Radford et al. 2021; key names of transformers'
// CLIPVisionModel.

#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"

namespace llava {

// Const after construction; Forward is thread-safe (one thread per device is the rule of the pool).
class ClipTower {
 public:
  // Loads every tensor of the tower; throws naming all that are missing or misshapen.
  ClipTower(const VisionConfig& config, const TensorSource& tensors, at::Device device,
            at::ScalarType dtype);

  // pixels [B, 3, S, S] -> the hidden state `layer` [B, P + 1, Dv]: 0 is the embeddings after the
  // pre-norm, k the output of block k, negative counts from the end. Later blocks are not run and
  // no post-norm is applied. Throws std::invalid_argument for a layer out of range.
  at::Tensor Forward(const at::Tensor& pixels, int64_t layer) const;
  // Z_v: hidden state and rows as `features` says. [B, P or P + 1, Dv].
  at::Tensor Features(const at::Tensor& pixels, const FeatureConfig& features) const;

  const VisionConfig& config() const { return config_; }
  at::Device device() const { return device_; }
  at::ScalarType dtype() const { return dtype_; }

 private:
  struct Block {
    at::Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;  // [Dv]
    at::Tensor qkv_weight, qkv_bias;                                // [3 Dv, Dv], [3 Dv]
    at::Tensor out_weight, out_bias;                                // [Dv, Dv], [Dv]
    at::Tensor fc1_weight, fc1_bias, fc2_weight, fc2_bias;
  };
  VisionConfig config_;
  at::Device device_;
  at::ScalarType dtype_;
  at::Tensor class_embedding_;     // [Dv]
  at::Tensor patch_embedding_;     // [Dv, 3, patch, patch], no bias
  at::Tensor position_embedding_;  // [P + 1, Dv]
  at::Tensor pre_norm_weight_, pre_norm_bias_;
  std::vector<Block> blocks_;
};

}  // namespace llava
