#include "model/nn/llama.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/tensor.h>

#include "model/nn/gradient_checkpoint.h"

namespace llava {
namespace {

// In 16 bits on the CPU, LibTorch keeps a compiled product with its work space for every number of
// rows it has met: gigabytes, and time, for batches that are never the same size. So their sizes
// are rounded up to a multiple of this; below it they are few.
constexpr int64_t kRowsRoundedTo = 64;

// Rows to add to `rows` that are multiplied with `weight`.
int64_t MissingRows(int64_t rows, const at::Tensor& weight) {
  const bool compiled = weight.is_cpu() && weight.scalar_type() != at::kFloat;
  if (!compiled || rows <= kRowsRoundedTo) return 0;
  return (kRowsRoundedTo - rows % kRowsRoundedTo) % kRowsRoundedTo;
}

// Zeros behind the last row.
at::Tensor WithRows(const at::Tensor& x, int64_t missing) {
  return at::constant_pad_nd(x, {0, 0, 0, missing});
}

}  // namespace

LlamaDecoder::LlamaDecoder(const DecoderConfig& config, const TensorSource& tensors,
                           at::Device device, at::ScalarType dtype)
    : config_(config),
      device_(device),
      dtype_(dtype),
      weights_(ReadDecoderWeights(config, tensors, device, dtype)) {
  const at::Tensor positions =
      at::arange(config.max_position_embeddings, at::TensorOptions(device).dtype(at::kLong));
  rope_ = ops::MakeRope(positions, config.head_dim, config.rope_theta);
}

at::Tensor LlamaDecoder::Embed(const at::Tensor& ids) const {
  return at::embedding(weights_.embed_tokens, ids.to(device_));
}

ops::RopeTable LlamaDecoder::RopeOf(const RaggedAttention& attention, int64_t rows) const {
  const std::vector<int64_t>& positions = attention.positions();
  const int64_t length = 1 + *std::max_element(positions.begin(), positions.end());
  if (length > config_.max_position_embeddings) {
    throw std::invalid_argument("decoder: a sequence of " + std::to_string(length) +
                                " tokens is longer than the model's context of " +
                                std::to_string(config_.max_position_embeddings));
  }
  const bool follow =
      std::adjacent_find(positions.begin(), positions.end(),
                         [](int64_t a, int64_t b) { return b != a + 1; }) == positions.end();
  if (follow) {
    return {rope_.cos.narrow(0, positions[0], rows), rope_.sin.narrow(0, positions[0], rows)};
  }
  const at::Tensor index = at::tensor(positions, at::kLong).to(device_);
  return {rope_.cos.index_select(0, index), rope_.sin.index_select(0, index)};
}

void LlamaDecoder::Adapt(const LowRankOptions& options, const TensorSource& tensors) {
  adapters_.emplace(config_, options, tensors, device_, dtype_);
}

at::Tensor LlamaDecoder::Product(int64_t index, LowRankAdapters::Matrix matrix, const at::Tensor& x,
                                 const at::Tensor& weight) const {
  const at::Tensor y = ops::Linear(x, weight);
  return adapters_ ? y + adapters_->Difference(index, matrix, x) : y;
}

std::vector<at::Tensor> LlamaDecoder::NormedProducts(
    int64_t index, const at::Tensor& x, const at::Tensor& norm,
    std::initializer_list<std::pair<LowRankAdapters::Matrix, const at::Tensor*>> matrices) const {
  if (!adapters_) {
    std::vector<at::Tensor> weights;
    for (const auto& [matrix, weight] : matrices) weights.push_back(*weight);
    return ops::NormedLinears(x, norm, config_.rms_norm_eps, weights);
  }
  const std::vector<at::Tensor> normed =
      ops::SharedCast(ops::RmsNorm(x, norm, config_.rms_norm_eps),
                      matrices.begin()->second->scalar_type(), matrices.size());
  std::vector<at::Tensor> products;
  for (const auto& [matrix, weight] : matrices) {
    products.push_back(Product(index, matrix, normed[products.size()], *weight));
  }
  return products;
}

at::Tensor LlamaDecoder::Attend(int64_t index, const at::Tensor& x,
                                const RaggedAttention& attention,
                                const ops::RopeTable& rope) const {
  const DecoderLayer& layer = weights_.layers[index];
  const auto heads = [&](const at::Tensor& y, int64_t number) {
    return y.view({x.size(0), number, config_.head_dim});
  };
  using Adapters = LowRankAdapters;
  const std::vector<at::Tensor> qkv = NormedProducts(
      index, x, layer.input_norm,
      {{Adapters::kQ, &layer.q}, {Adapters::kK, &layer.k}, {Adapters::kV, &layer.v}});
  const at::Tensor seen =
      attention.Attend(index, heads(qkv[0], config_.num_heads), heads(qkv[1], config_.num_kv_heads),
                       heads(qkv[2], config_.num_kv_heads), rope);
  return Product(index, Adapters::kO, seen.flatten(1), layer.o);
}

at::Tensor LlamaDecoder::Step(int64_t index, const at::Tensor& x, const RaggedAttention& attention,
                              const ops::RopeTable& rope) const {
  const DecoderLayer& layer = weights_.layers[index];
  const at::Tensor seen = x + Attend(index, x, attention, rope);
  using Adapters = LowRankAdapters;
  const std::vector<at::Tensor> inner =
      NormedProducts(index, seen, layer.post_attention_norm,
                     {{Adapters::kGate, &layer.gate}, {Adapters::kUp, &layer.up}});
  return seen + Product(index, Adapters::kDown, ops::SwiGlu(inner[0], inner[1]), layer.down);
}

at::Tensor LlamaDecoder::Forward(const at::Tensor& embeddings, std::span<const Segment> segments,
                                 std::vector<at::Tensor>* hidden_states) const {
  if (embeddings.dim() != 2 || embeddings.size(1) != config_.hidden_size) {
    std::ostringstream message;
    message << "decoder: embeddings of shape " << embeddings.sizes() << ", expected [T, "
            << config_.hidden_size << "]";
    throw std::invalid_argument(message.str());
  }
  // Shared with the backward pass where that computes layers anew.
  const auto attention = std::make_shared<const RaggedAttention>(segments, device_);
  const int64_t rows = embeddings.size(0);
  if (rows == 0 || static_cast<int64_t>(attention->positions().size()) != rows) {
    throw std::invalid_argument("decoder: " + std::to_string(rows) +
                                " embeddings for segments of " +
                                std::to_string(attention->positions().size()) + " tokens");
  }
  if (const int64_t missing = MissingRows(rows, weights_.layers[0].q); missing > 0) {
    // As sequences of their own, which nobody sees, none longer than the context.
    std::vector<Segment> rounded(segments.begin(), segments.end());
    for (int64_t left = missing; left > 0; left -= rounded.back().tokens) {
      rounded.push_back({.tokens = std::min(left, config_.max_position_embeddings)});
    }
    std::vector<at::Tensor> states;
    const at::Tensor out =
        Forward(WithRows(embeddings, missing), rounded, hidden_states ? &states : nullptr);
    for (const at::Tensor& state : states) hidden_states->push_back(state.narrow(0, 0, rows));
    return out.narrow(0, 0, rows);
  }
  const ops::RopeTable rope = RopeOf(*attention, rows);
  const bool recompute = gradient_checkpointing_ && at::GradMode::is_enabled();
  at::Tensor x = embeddings;
  // Text alone beside a frozen table: layers are computed anew for what they are to learn only.
  if (recompute && adapters_ && !x.requires_grad()) x = x.detach().requires_grad_();
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    if (hidden_states) hidden_states->push_back(x);
    const auto step = [this, i, attention, rope](const at::Tensor& input) {
      return Step(i, input, *attention, rope);
    };
    x = recompute ? Checkpoint(step, x) : step(x);
  }
  // Only now: a call that throws half-way leaves the caches as they were.
  for (const Segment& segment : segments) {
    if (segment.cache) segment.cache->Advance(segment.tokens);
  }
  x = ops::RmsNorm(x, weights_.norm, config_.rms_norm_eps);
  if (hidden_states) hidden_states->push_back(x);
  return x;
}

at::Tensor LlamaDecoder::Logits(const at::Tensor& hidden) const {
  if (const int64_t missing = MissingRows(hidden.size(0), weights_.lm_head); missing > 0) {
    return Logits(WithRows(hidden, missing)).narrow(0, 0, hidden.size(0));
  }
  return ops::Linear(hidden, weights_.lm_head).to(at::kFloat);
}

void LlamaDecoder::VisitParameters(const ParameterVisitor& visit) {
  visit("model.embed_tokens.weight", weights_.embed_tokens);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    for (const auto& [name, tensor] : kLayerTensors)
      visit(layer + name, weights_.layers[i].*tensor);
    if (adapters_) adapters_->VisitParameters(static_cast<int64_t>(i), visit);
  }
  visit("model.norm.weight", weights_.norm);
  if (config_.tie_word_embeddings) {
    weights_.lm_head = weights_.embed_tokens;  // in case the visitor replaced it
  } else {
    visit("lm_head.weight", weights_.lm_head);
  }
}

}  // namespace llava
