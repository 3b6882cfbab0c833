#include "model/nn/decoder_weights.h"

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/cat.h>

#include "model/nn/parameter_reader.h"

namespace llava {
namespace {

// All rows in one tensor, which the parts then are views of.
at::Tensor Join(std::initializer_list<at::Tensor*> parts) {
  std::vector<at::Tensor> separate;
  for (const at::Tensor* part : parts) separate.push_back(*part);
  at::Tensor whole = at::cat(separate);
  int64_t begin = 0;
  for (at::Tensor* part : parts) {
    *part = whole.narrow(0, begin, part->size(0));
    begin += part->size(0);
  }
  return whole;
}

}  // namespace

uint64_t DecoderWeights::bytes() const {
  uint64_t sum = embed_tokens.nbytes() + norm.nbytes();
  if (!lm_head.is_same(embed_tokens)) sum += lm_head.nbytes();
  for (const DecoderLayer& layer : layers) {
    for (const at::Tensor& tensor : {layer.input_norm, layer.post_attention_norm, layer.q, layer.k,
                                     layer.v, layer.o, layer.gate, layer.up, layer.down}) {
      sum += tensor.nbytes();
    }
  }
  return sum;
}

DecoderWeights ReadDecoderWeights(const DecoderConfig& config, const TensorSource& tensors,
                                  at::Device device, at::ScalarType dtype, bool join) {
  if (config.quantization) {
    throw std::runtime_error("the decoder is packed for serving on the CPU (" +
                             config.quantization->Describe() +
                             "); this needs the checkpoint that it was made from");
  }
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_width = config.num_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  ParameterReader reader(tensors, device, dtype);
  DecoderWeights weights;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i) + ".";
    DecoderLayer layer;
    layer.input_norm = reader.Read(name + "input_layernorm.weight", {width});
    layer.post_attention_norm = reader.Read(name + "post_attention_layernorm.weight", {width});
    layer.q = reader.Read(name + "self_attn.q_proj.weight", {q_width, width});
    layer.k = reader.Read(name + "self_attn.k_proj.weight", {kv_width, width});
    layer.v = reader.Read(name + "self_attn.v_proj.weight", {kv_width, width});
    layer.o = reader.Read(name + "self_attn.o_proj.weight", {width, q_width});
    layer.gate = reader.Read(name + "mlp.gate_proj.weight", {inner, width});
    layer.up = reader.Read(name + "mlp.up_proj.weight", {inner, width});
    layer.down = reader.Read(name + "mlp.down_proj.weight", {width, inner});
    if (join && reader.complete()) {
      layer.qkv = Join({&layer.q, &layer.k, &layer.v});
      layer.gate_up = Join({&layer.gate, &layer.up});
    }
    weights.layers.push_back(std::move(layer));
  }
  weights.embed_tokens = reader.Read("model.embed_tokens.weight", {config.vocab_size, width});
  weights.norm = reader.Read("model.norm.weight", {width});
  weights.lm_head = config.tie_word_embeddings
                        ? weights.embed_tokens
                        : reader.Read("lm_head.weight", {config.vocab_size, width});
  reader.Finish("decoder");
  return weights;
}

}  // namespace llava
