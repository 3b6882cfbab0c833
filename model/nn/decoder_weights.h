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

// All but the joined ones, in the order in which they are read; the names are those behind
// "model.layers.N.".
struct LayerTensor {
  const char* name;
  at::Tensor DecoderLayer::*tensor;
};
inline constexpr LayerTensor kLayerTensors[] = {
    {"input_layernorm.weight", &DecoderLayer::input_norm},
    {"post_attention_layernorm.weight", &DecoderLayer::post_attention_norm},
    {"self_attn.q_proj.weight", &DecoderLayer::q},
    {"self_attn.k_proj.weight", &DecoderLayer::k},
    {"self_attn.v_proj.weight", &DecoderLayer::v},
    {"self_attn.o_proj.weight", &DecoderLayer::o},
    {"mlp.gate_proj.weight", &DecoderLayer::gate},
    {"mlp.up_proj.weight", &DecoderLayer::up},
    {"mlp.down_proj.weight", &DecoderLayer::down},
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
