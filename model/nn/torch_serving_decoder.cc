#include "model/nn/torch_serving_decoder.h"

#include <stdexcept>
#include <string>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include "model/nn/step_rows.h"

namespace llava {
namespace {

at::Tensor Indices(at::ArrayRef<int32_t> values, at::Device device) {
  return at::tensor(values, at::kInt).to(device, at::kLong);
}

}  // namespace

TorchServingDecoder::TorchServingDecoder(const DecoderConfig& config, DecoderWeights weights,
                                         int64_t num_blocks)
    : config_(config), weights_(std::move(weights)), num_blocks_(num_blocks) {
  if (num_blocks < 1) {
    throw std::invalid_argument("decoder: there has to be a block of keys and values");
  }
  const at::Tensor& like = weights_.embed_tokens;
  kv_ = at::zeros(
      {config.num_layers, 2, num_blocks, kKvBlockTokens, config.num_kv_heads, config.head_dim},
      like.options());
  rope_ = ops::MakeRope(at::arange(config.max_position_embeddings, like.options().dtype(at::kLong)),
                        config.head_dim, config.rope_theta);
}

at::Tensor TorchServingDecoder::Embed(std::span<const int32_t> ids) const {
  CheckIds(config_, ids);
  return at::embedding(weights_.embed_tokens,
                       Indices({ids.data(), ids.size()}, weights_.embed_tokens.device()));
}

at::Tensor TorchServingDecoder::Step(const at::Tensor& rows,
                                     std::span<const StepSequence> sequences,
                                     std::span<const int64_t> wanted) {
  c10::InferenceMode guard;
  const StepRows plan = PlanStepRows(config_, num_blocks_, rows.sizes(), sequences, wanted);
  const at::Device device = weights_.embed_tokens.device();
  const at::Tensor positions = Indices(plan.positions, device), slots = Indices(plan.slots, device);
  const ops::RopeTable rope = {rope_.cos.index_select(0, positions),
                               rope_.sin.index_select(0, positions)};
  std::vector<at::Tensor> tables;
  for (const StepSequence& sequence : sequences) {
    const auto blocks = BlocksOf(sequence.computed + sequence.tokens);
    tables.push_back(Indices({sequence.blocks.data(), static_cast<size_t>(blocks)}, device));
  }
  const auto heads = [&](const at::Tensor& y, int64_t number) {
    return y.view({y.size(0), number, config_.head_dim});
  };
  at::Tensor x = rows;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const DecoderLayer& layer = weights_.layers[i];
    const std::vector<at::Tensor> qkv =
        ops::NormedLinears(x, layer.input_norm, config_.rms_norm_eps, {layer.q, layer.k, layer.v});
    const at::Tensor q = ops::ApplyRope(heads(qkv[0], config_.num_heads), rope);
    const at::Tensor k_cache = kv_[i][0], v_cache = kv_[i][1];
    k_cache.flatten(0, 1).index_copy_(0, slots,
                                      ops::ApplyRope(heads(qkv[1], config_.num_kv_heads), rope));
    v_cache.flatten(0, 1).index_copy_(0, slots, heads(qkv[2], config_.num_kv_heads));
    std::vector<at::Tensor> parts;
    int64_t begin = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto& [tokens, computed, blocks] = sequences[s];
      const auto seen = [&, length = computed + tokens](const at::Tensor& cache) {
        return cache.index_select(0, tables[s]).flatten(0, 1).narrow(0, 0, length);
      };
      parts.push_back(ops::Attention(q.narrow(0, begin, tokens), seen(k_cache), seen(v_cache),
                                     /*causal=*/true));
      begin += tokens;
    }
    x = x + ops::Linear(at::cat(parts).flatten(1), layer.o);
    const std::vector<at::Tensor> inner = ops::NormedLinears(
        x, layer.post_attention_norm, config_.rms_norm_eps, {layer.gate, layer.up});
    x = x + ops::Linear(ops::SwiGlu(inner[0], inner[1]), layer.down);
  }
  x = x.index_select(
      0, at::tensor(at::ArrayRef<int64_t>(wanted.data(), wanted.size()), at::kLong).to(device));
  x = ops::RmsNorm(x, weights_.norm, config_.rms_norm_eps);
  return ops::Linear(x, weights_.lm_head).to(at::kCPU, at::kFloat);
}

void TorchServingDecoder::CopyBlock(int32_t from, int32_t to) {
  CheckCopy(from, to, num_blocks_);
  c10::InferenceMode guard;
  kv_.select(2, to).copy_(kv_.select(2, from));
}

}  // namespace llava
