#pragma once

// The parameters of a LLaMA decoder under their names in a checkpoint.

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"

namespace llava {

struct DecoderLayer {
  at::Tensor input_norm, post_attention_norm;  // [D]
  at::Tensor q, k, v, o;                       // [H Dh, D], [Hkv Dh, D] x 2, [D, H Dh]
  at::Tensor gate, up, down;                   // [F, D] x 2, [D, F]
  // Joined: what q, k and v, and gate and up, are parts of; else undefined.
  at::Tensor qkv{}, gate_up{};
};

struct DecoderWeights {
  at::Tensor embed_tokens;  // [V, D]
  at::Tensor norm;          // [D]
  at::Tensor lm_head;       // [V, D]; the embedding itself when tied
  std::vector<DecoderLayer> layers;

  uint64_t bytes() const;  // a tied head counts once
};

// `join`: with qkv and gate_up, as ToCuda takes them. Each is joined as soon as it is read, so that
// the memory of its parts serves the next layer. Not for training, whose parameters are tensors of
// their own. Throws std::runtime_error naming every tensor that is missing or misshapen.
DecoderWeights ReadDecoderWeights(const DecoderConfig& config, const TensorSource& tensors,
                                  at::Device device, at::ScalarType dtype, bool join = false);

}  // namespace llava
