#include "model/nn/quantize.h"

#include <map>
#include <memory>
#include <stdexcept>
#include <string_view>

#include "model/checkpoint/tensor_names.h"
#include "model/ops/cpu/weight_memory.h"

namespace llava {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

constexpr std::string_view kEmbedding = "model.embed_tokens.weight";

// All but the matrices of the decoder.
Tensors PlainTensors(const TensorSource& tensors) {
  Tensors plain;
  for (const auto& [name, info] : tensors.tensors()) {
    if (!InProjector(name) && name != kEmbedding && name != "model.norm.weight") continue;
    plain[name] = tensors.Get(name);
    if (name == kEmbedding) plain[name] = plain[name].to(at::kBFloat16);
  }
  return plain;
}

Tensors LayerTensors(const LanguageCheckpoint& checkpoint, int64_t index,
                     const PackOptions& options, ops::cpu::ThreadPool& pool) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const PackedLayer layer = PackLayer(checkpoint.config.decoder, checkpoint.tensors, index, options,
                                      pool, std::make_shared<ops::cpu::WeightMemory>());
  Tensors tensors;
  for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) {
    tensors[prefix + norm] = checkpoint.tensors.Get(prefix + norm);
  }
  tensors[prefix + "self_attn.qkv_proj.packed"] = StoredTensor(layer.qkv);
  tensors[prefix + "self_attn.o_proj.packed"] = StoredTensor(layer.o);
  tensors[prefix + "mlp.gate_up_proj.packed"] = StoredTensor(layer.gate_up);
  tensors[prefix + "mlp.down_proj.packed"] = StoredTensor(layer.down);
  return tensors;
}

}  // namespace

std::optional<std::filesystem::path> PublishPacked(
    const LanguageCheckpoint& checkpoint, const PackOptions& options,
    const std::filesystem::path& root, const std::string& name, const std::string& recipe,
    ops::cpu::ThreadPool& pool, const std::function<bool(int64_t done, int64_t total)>& step,
    const LanguageDraft::SelfTestMaker& make_self_test) {
  const DecoderConfig& config = checkpoint.config.decoder;
  if (config.quantization) {
    throw std::invalid_argument(checkpoint.name + " is packed already, as " +
                                config.quantization->Describe());
  }
  CheckDecoderTensors(config, checkpoint.tensors);
  LanguageCheckpoint packed = checkpoint;
  packed.config.decoder.quantization = ToQuantization(options);

  const int64_t total = config.num_layers + 2;
  LanguageDraft draft(root, name, recipe);
  draft.Add(PlainTensors(checkpoint.tensors));
  if (!step(1, total)) return std::nullopt;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    draft.Add(LayerTensors(checkpoint, i, options, pool));
    if (!step(i + 2, total)) return std::nullopt;
  }
  draft.Add(
      {{"lm_head.packed", StoredTensor(PackHead(config, checkpoint.tensors, options, pool))}});
  if (!step(total, total)) return std::nullopt;
  return draft.Publish(packed, make_self_test);
}

}  // namespace llava
