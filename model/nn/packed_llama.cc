#include "model/nn/packed_llama.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include "model/nn/step_rows.h"

namespace llava {
namespace {

using ops::cpu::Element;
using ops::cpu::KvElement;
using ops::cpu::Multiplier;
using ops::cpu::PackedMatrix;
using ops::cpu::WeightFormat;

static_assert(ops::cpu::kBlockTokens == kKvBlockTokens);

// Elements below which work is done by the caller alone: less than what it costs to wake another.
constexpr int64_t kTooFew = 16 * 1024;

KvElement ElementOf(WeightFormat weights, KvType kv) {
  switch (kv) {
    case KvType::kFloat:
      return KvElement::kFloat;
    case KvType::kInt8:
      return KvElement::kInt8;
    case KvType::kBFloat16:
      return KvElement::kBFloat16;
    case KvType::kAuto:
      break;
  }
  return weights == WeightFormat::kFloat ? KvElement::kFloat : KvElement::kBFloat16;
}

ops::cpu::KvLayout LayoutOf(const DecoderConfig& config, WeightFormat weights, KvType kv) {
  return {ElementOf(weights, kv), config.num_kv_heads, config.head_dim};
}

// Calls task(row) for all rows, by several threads where that pays.
template <typename Task>
void ForRows(ops::cpu::ThreadPool& pool, int64_t rows, int64_t width, const Task& task) {
  if (rows == 1 || rows * width <= kTooFew) {
    for (int64_t row = 0; row < rows; ++row) task(row);
    return;
  }
  const int64_t together = std::max<int64_t>(1, kTooFew / 4 / width);
  pool.Run((rows + together - 1) / together, [&](int64_t index, int) {
    const int64_t end = std::min(rows, (index + 1) * together);
    for (int64_t row = index * together; row < end; ++row) task(row);
  });
}

}  // namespace

PackedLlama::PackedLlama(const DecoderConfig& config, PackedDecoderWeights weights,
                         std::shared_ptr<ops::cpu::ThreadPool> pool, KvType kv, uint64_t kv_bytes)
    : config_(config),
      weights_(std::move(weights)),
      pool_(std::move(pool)),
      kernels_(ops::cpu::Best()),
      inner_(weights_.options.format == WeightFormat::kFloat ? Element::kFloat
                                                             : Element::kBFloat16),
      rope_(ops::MakeRope(at::arange(config.max_position_embeddings, at::kLong), config.head_dim,
                          config.rope_theta)),
      layout_(LayoutOf(config, weights_.options.format, kv)),
      block_bytes_(config.num_layers * layout_.block_bytes),
      num_blocks_(static_cast<int64_t>(kv_bytes) / block_bytes_),
      multiplier_(*pool_),
      attention_(*pool_) {
  if (num_blocks_ < 1) {
    throw std::invalid_argument("decoder: " + std::to_string(kv_bytes) +
                                " bytes for keys and values hold not one block of " +
                                std::to_string(block_bytes_));
  }
  blocks_ = memory_.Allocate(static_cast<size_t>(num_blocks_ * block_bytes_));
}

int64_t PackedLlama::BlockBytes(const DecoderConfig& config, WeightFormat weights, KvType kv) {
  return config.num_layers * LayoutOf(config, weights, kv).block_bytes;
}

at::Tensor PackedLlama::Embed(std::span<const int32_t> ids) const {
  CheckIds(config_, ids);
  const int64_t width = config_.hidden_size;
  at::Tensor rows = at::empty({static_cast<int64_t>(ids.size()), width}, at::kFloat);
  const bool floats = weights_.embedding.scalar_type() == at::kFloat;
  const void* table = weights_.embedding.const_data_ptr();
  float* out = rows.data_ptr<float>();
  for (const int32_t id : ids) {
    if (floats) {
      std::copy_n(static_cast<const float*>(table) + id * width, width, out);
    } else {
      const uint16_t* row = static_cast<const uint16_t*>(table) + id * width;
      for (int64_t i = 0; i < width; ++i) out[i] = std::bit_cast<float>(uint32_t{row[i]} << 16);
    }
    out += width;
  }
  return rows;
}

void PackedLlama::CopyBlock(int32_t from, int32_t to) {
  CheckCopy(from, to, num_blocks_);
  std::memcpy(blocks_ + to * block_bytes_, blocks_ + from * block_bytes_,
              static_cast<size_t>(block_bytes_));
}

void PackedLlama::Norm(const float* x, const std::vector<float>& weight, int64_t rows, float* out) {
  const int64_t width = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ForRows(*pool_, rows, width, [&](int64_t row) {
    kernels_.rms_norm(x + row * width, weight.data(), eps, width, Element::kFloat,
                      out + row * width);
  });
}

void PackedLlama::SwiGlu(const void* gate_up, int64_t rows, void* out) {
  const int64_t width = config_.intermediate_size;
  const int64_t bytes = width * BytesOf(inner_);
  ForRows(*pool_, rows, 2 * width, [&](int64_t row) {
    const uint8_t* gate = static_cast<const uint8_t*>(gate_up) + row * 2 * bytes;
    kernels_.swiglu(inner_, gate, gate + bytes, width, static_cast<uint8_t*>(out) + row * bytes);
  });
}

void PackedLlama::Multiply(const Operand& x, int64_t rows, const PackedMatrix& weights,
                           const Result& y) {
  ++num_products_;
  const int64_t in = weights.depth(), out = weights.rows();
  multiplier_.Multiply(
      {.element = x.element, .data = x.data, .rows = rows, .columns = in, .stride = in}, weights,
      {.element = y.element, .data = y.data, .rows = rows, .columns = out, .stride = out}, y.store);
}

const float* PackedLlama::Attend(int64_t index, const float* x, int64_t rows) {
  const PackedLayer& layer = weights_.layers[index];
  const int64_t q_width = config_.num_heads * config_.head_dim;
  const int64_t kv_width = config_.num_kv_heads * config_.head_dim;
  float* normed = normed_.Get(rows, config_.hidden_size);
  float* qkv = qkv_.Get(rows, q_width + 2 * kv_width);
  float* seen = seen_.Get(rows, q_width);

  Norm(x, layer.input_norm, rows, normed);
  Multiply({Element::kFloat, normed}, rows, layer.qkv, {Element::kFloat, qkv});
  attention_.Run({.layout = &layout_,
                  .layer = blocks_ + index * layout_.block_bytes,
                  .block_stride = block_bytes_,
                  .heads = config_.num_heads,
                  .sequences = sequences_,
                  .q = qkv,
                  .k = qkv + q_width,
                  .v = qkv + q_width + kv_width,
                  .stride = q_width + 2 * kv_width,
                  .cosine = rope_.cos.const_data_ptr<float>(),
                  .sine = rope_.sin.const_data_ptr<float>(),
                  .out = seen,
                  .out_stride = q_width});
  return seen;
}

void PackedLlama::FeedForward(int64_t index, const float* seen, float* x, int64_t rows) {
  const PackedLayer& layer = weights_.layers[index];
  Multiply({Element::kFloat, seen}, rows, layer.o, {Element::kFloat, x, Multiplier::Store::kAdd});
  float* normed = normed_.Get(rows, config_.hidden_size);
  float* gate_up = gate_up_.Get(rows, 2 * config_.intermediate_size);
  float* gated = gated_.Get(rows, config_.intermediate_size);
  Norm(x, layer.post_attention_norm, rows, normed);
  Multiply({Element::kFloat, normed}, rows, layer.gate_up, {inner_, gate_up});
  SwiGlu(gate_up, rows, gated);
  Multiply({inner_, gated}, rows, layer.down, {Element::kFloat, x, Multiplier::Store::kAdd});
}

at::Tensor PackedLlama::Step(const at::Tensor& rows, std::span<const StepSequence> sequences,
                             std::span<const int64_t> wanted) {
  const int64_t width = config_.hidden_size, count = rows.size(0);
  PlanStepRows(config_, num_blocks_, rows.sizes(), sequences, wanted);  // throws what does not fit
  sequences_.clear();
  for (const StepSequence& sequence : sequences) {
    sequences_.push_back({sequence.tokens, sequence.computed, sequence.blocks.data()});
  }
  const at::Tensor in = rows.to(at::kFloat).contiguous();
  float* x = x_.Get(count, width);
  std::memcpy(x, in.const_data_ptr<float>(), static_cast<size_t>(count * width) * sizeof(float));
  const int64_t last = config_.num_layers - 1;
  for (int64_t i = 0; i < last; ++i) FeedForward(i, Attend(i, x, count), x, count);
  const float* const seen = Attend(last, x, count);

  // Behind the last attention only the rows that are wanted matter: of a prompt one or none.
  const auto asked = static_cast<int64_t>(wanted.size());
  at::Tensor logits = at::empty({asked, config_.vocab_size}, at::kFloat);
  if (asked == 0) return logits;
  const int64_t seen_width = config_.num_heads * config_.head_dim;
  float* chosen = chosen_.Get(asked, width);
  float* chosen_seen = chosen_seen_.Get(asked, seen_width);
  for (int64_t i = 0; i < asked; ++i) {
    std::copy_n(x + wanted[i] * width, width, chosen + i * width);
    std::copy_n(seen + wanted[i] * seen_width, seen_width, chosen_seen + i * seen_width);
  }
  FeedForward(last, chosen_seen, chosen, asked);
  float* normed = normed_.Get(asked, width);
  Norm(chosen, weights_.norm, asked, normed);
  Multiply({Element::kFloat, normed}, asked, weights_.lm_head,
           {Element::kFloat, logits.data_ptr<float>()});
  return logits;
}

}  // namespace llava
