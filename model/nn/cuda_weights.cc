#include "model/nn/cuda_weights.h"

#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

namespace llava {

uint64_t CudaDecoderWeights::step_bytes() const {
  uint64_t sum = norm.nbytes() + lm_head.bytes();
  for (const Layer& layer : layers) {
    sum += layer.input_norm.nbytes() + layer.post_attention_norm.nbytes();
    for (const CudaMatrix* matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      sum += matrix->bytes();
    }
  }
  return sum;
}

uint64_t CudaDecoderWeights::bytes() const {
  const bool tied =
      !lm_head.is_packed() && lm_head.Dense(embed_tokens.scalar_type()).is_same(embed_tokens);
  return step_bytes() + (tied ? 0 : embed_tokens.nbytes());
}

CudaDecoderWeights ToCuda(const DecoderWeights& weights) {
  c10::InferenceMode guard;
  CudaDecoderWeights result{.embed_tokens = weights.embed_tokens,
                            .norm = weights.norm,
                            .lm_head = CudaMatrix(weights.lm_head),
                            .layers = {}};
  for (const DecoderLayer& layer : weights.layers) {
    result.layers.push_back({.input_norm = layer.input_norm,
                             .post_attention_norm = layer.post_attention_norm,
                             .qkv = CudaMatrix(layer.qkv),
                             .o = CudaMatrix(layer.o),
                             .gate_up = CudaMatrix(layer.gate_up),
                             .down = CudaMatrix(layer.down)});
  }
  return result;
}

CudaDecoderWeights ToCuda(const PackedDecoderWeights& weights, at::Device device) {
  c10::InferenceMode guard;
  const auto options = at::TensorOptions(device).dtype(weights.embedding.scalar_type());
  const auto norm = [&](const std::vector<float>& values) {
    return at::tensor(values, at::kFloat).to(options);
  };
  CudaDecoderWeights result{.embed_tokens = weights.embedding.to(options),
                            .norm = norm(weights.norm),
                            .lm_head = CudaMatrix(weights.lm_head, device),
                            .layers = {}};
  for (const PackedLayer& layer : weights.layers) {
    result.layers.push_back({.input_norm = norm(layer.input_norm),
                             .post_attention_norm = norm(layer.post_attention_norm),
                             .qkv = CudaMatrix(layer.qkv, device),
                             .o = CudaMatrix(layer.o, device),
                             .gate_up = CudaMatrix(layer.gate_up, device),
                             .down = CudaMatrix(layer.down, device)});
  }
  return result;
}

}  // namespace llava
