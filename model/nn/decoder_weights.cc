#include "model/nn/decoder_weights.h"

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/cat.h>

#include "model/checkpoint/tensor_names.h"
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
    for (const auto& [name, tensor] : kLayerTensors) sum += (layer.*tensor).nbytes();
  }
  return sum;
}

DecoderWeights ReadDecoderWeights(const DecoderConfig& config, const TensorSource& tensors,
                                  at::Device device, at::ScalarType dtype, bool join) {
  if (config.quantization) {
    throw std::runtime_error("the decoder is packed for serving (" +
                             config.quantization->Describe() +
                             "); this needs the checkpoint that it was made from");
  }
  const TensorShapes shapes = DecoderTensors(config);
  ParameterReader reader(tensors, device, dtype);
  const auto read = [&](const std::string& name) { return reader.Read(name, shapes.at(name)); };
  DecoderWeights weights;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer_name = "model.layers." + std::to_string(i) + ".";
    DecoderLayer layer;
    for (const auto& [name, tensor] : kLayerTensors) layer.*tensor = read(layer_name + name);
    if (join && reader.complete()) {
      layer.qkv = Join({&layer.q, &layer.k, &layer.v});
      layer.gate_up = Join({&layer.gate, &layer.up});
    }
    weights.layers.push_back(std::move(layer));
  }
  weights.embed_tokens = read("model.embed_tokens.weight");
  weights.norm = read("model.norm.weight");
  weights.lm_head = config.tie_word_embeddings ? weights.embed_tokens : read("lm_head.weight");
  reader.Finish("decoder");
  return weights;
}

}  // namespace llava
