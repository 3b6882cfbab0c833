#include "model/nn/cuda_llama.h"

#include <algorithm>
#include <cmath>
#include <ranges>
#include <stdexcept>
#include <string>
#include <tuple>

#include <ATen/TensorOperators.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include "model/nn/cuda_llama_parts.h"
#include "model/nn/step_rows.h"
#include "model/ops/feature.h"

namespace llava {
namespace {

static_assert(kKvBlockTokens == cuda::kBlockTokens);

int64_t LongestOf(std::span<const StepSequence> sequences) {
  int64_t longest = 0;
  for (const StepSequence& sequence : sequences) {
    longest = std::max(longest, sequence.computed + sequence.tokens);
  }
  return longest;
}

}  // namespace

CudaLlama::CudaLlama(const DecoderConfig& config, CudaDecoderWeights weights,
                     const CudaLlamaOptions& options)
    : config_(config),
      options_(options),
      weights_(std::move(weights)),
      device_(weights_.embed_tokens.device()),
      element_(ElementOf(weights_.embed_tokens.scalar_type())),
      num_blocks_(static_cast<int64_t>(options.kv_bytes) /
                  KvBlockBytes(config, weights_.embed_tokens.element_size())) {
  if (num_blocks_ < 1) {
    throw std::invalid_argument("decoder: " + std::to_string(options.kv_bytes) +
                                " bytes hold no block of keys and values");
  }
  if (!cuda::HasPagedAttention(config.head_dim) || config.num_heads % config.num_kv_heads != 0) {
    throw std::invalid_argument("decoder: no CUDA attention for heads of " +
                                std::to_string(config.head_dim));
  }
  c10::InferenceMode guard;
  kv_ = at::zeros(
      {config.num_layers, 2, num_blocks_ + 1, kKvBlockTokens, config.num_kv_heads, config.head_dim},
      weights_.embed_tokens.options());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    caches_.push_back({.keys = kv_[i][0], .values = kv_[i][1]});
  }
  rope_ = ops::MakeRope(
      at::arange(config.max_position_embeddings, at::TensorOptions(device_).dtype(at::kLong)),
      config.head_dim, config.rope_theta);
  rope_ = {rope_.cos.contiguous(), rope_.sin.contiguous()};
  if (element_ == cuda::Element::kBFloat16 && ops::Enabled(ops::Feature::kStream)) {
    const int64_t most = weights_.lm_head.streamed_rows();
    for (const int64_t size : kGraphSequences) {
      if (size <= most) streamed_.insert(size);
    }
  }
}

CudaLlama::~CudaLlama() = default;

at::Tensor CudaLlama::Upload(at::ArrayRef<int32_t> values) const {
  const auto count = static_cast<int64_t>(values.size());
  const at::Tensor host = cuda::HostBuffer({count}, at::kInt, device_);
  std::copy(values.begin(), values.end(), host.data_ptr<int32_t>());
  return host.to(device_, /*non_blocking=*/true);
}

at::Tensor CudaLlama::Embed(std::span<const int32_t> ids) const {
  c10::InferenceMode guard;
  // A wrong id would stop a kernel, and with it the device for the whole process.
  CheckIds(config_, ids);
  return at::embedding(weights_.embed_tokens, Upload({ids.data(), ids.size()}));
}

void CudaLlama::AddNorm(const at::Tensor& residual, const at::Tensor& delta,
                        const at::Tensor& weight, const at::Tensor& out) const {
  cuda::AddRmsNorm(element_,
                   {.residual = residual.data_ptr(),
                    .delta = delta.defined() ? delta.const_data_ptr() : nullptr,
                    .weight = weight.const_data_ptr(),
                    .out = out.data_ptr(),
                    .width = static_cast<int>(config_.hidden_size),
                    .eps = static_cast<float>(config_.rms_norm_eps)},
                   residual.size(0), cuda::CurrentStream(device_));
}

void CudaLlama::Prefill(const Cache& cache, const at::Tensor& qkv, const Batch& batch,
                        const at::Tensor& out) const {
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  const at::Tensor all = qkv.view({qkv.size(0), heads + 2 * kv_heads, config_.head_dim});
  const at::Tensor out_heads = out.view({out.size(0), heads, config_.head_dim});
  for (const Batch::Chunk& chunk : batch.chunks) {
    const at::Tensor rows = all.narrow(0, chunk.begin, chunk.tokens);
    const at::Tensor q = rows.narrow(1, 0, heads);
    at::Tensor k = rows.narrow(1, heads, kv_heads), v = rows.narrow(1, heads + kv_heads, kv_heads);
    if (chunk.computed > 0) {
      const auto seen = [&](const at::Tensor& all_blocks) {
        return all_blocks.index_select(0, chunk.blocks)
            .flatten(0, 1)
            .narrow(0, 0, chunk.computed + chunk.tokens);
      };
      k = seen(cache.keys);
      v = seen(cache.values);
    }
    const at::Tensor to = out_heads.narrow(0, chunk.begin, chunk.tokens);
    const bool flash = device_.is_cuda() && element_ == cuda::Element::kBFloat16 &&
                       config_.head_dim % 8 == 0 && config_.head_dim <= 256;
    if (!flash) {
      to.copy_(ops::Attention(q, k, v, /*causal=*/true));
      continue;
    }
    const auto turned = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
    // Called by its own name, "causal" lets the last query see all keys: what a chunk needs.
    const at::Tensor result =
        std::get<0>(at::_scaled_dot_product_flash_attention(
                        turned(q), turned(k), turned(v), /*dropout_p=*/0.0, /*is_causal=*/true,
                        /*return_debug_mask=*/false, 1.0 / std::sqrt(config_.head_dim)))
            .squeeze(0)
            .transpose(0, 1);
    to.copy_(result);
  }
}

void CudaLlama::Attend(const Cache& cache, const at::Tensor& qkv, const Batch& batch,
                       const at::Tensor& out) const {
  const cuda::Stream stream = cuda::CurrentStream(device_);
  const int heads = static_cast<int>(config_.num_heads);
  const int kv_heads = static_cast<int>(config_.num_kv_heads);
  const int head_dim = static_cast<int>(config_.head_dim);
  cuda::RopeToCache(element_,
                    {.qkv = qkv.data_ptr(),
                     .cos = rope_.cos.const_data_ptr<float>(),
                     .sin = rope_.sin.const_data_ptr<float>(),
                     .positions = batch.positions.const_data_ptr<int32_t>(),
                     .slots = batch.slots.const_data_ptr<int32_t>(),
                     .k_cache = cache.keys.data_ptr(),
                     .v_cache = cache.values.data_ptr(),
                     .num_heads = heads,
                     .num_kv_heads = kv_heads,
                     .head_dim = head_dim},
                    qkv.size(0), stream);
  Prefill(cache, qkv, batch, out);
  if (batch.splits == 0) return;
  const int64_t sequences = batch.lengths.size(0);
  const at::Tensor partial =
      at::empty({sequences, heads, batch.splits, head_dim + 2}, qkv.options().dtype(at::kFloat));
  cuda::PagedAttention(element_,
                       {.q = qkv.const_data_ptr(),
                        .q_stride = qkv.size(1),
                        .k_cache = cache.keys.const_data_ptr(),
                        .v_cache = cache.values.const_data_ptr(),
                        .rows = batch.decode_rows.const_data_ptr<int32_t>(),
                        .lengths = batch.lengths.const_data_ptr<int32_t>(),
                        .tables = batch.tables.const_data_ptr<int32_t>(),
                        .table_stride = static_cast<int>(batch.tables.size(1)),
                        .num_heads = heads,
                        .num_kv_heads = kv_heads,
                        .head_dim = head_dim,
                        .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                        .splits = static_cast<int>(batch.splits),
                        .beside_streams = Streams(qkv.size(0)),
                        .partial = partial.data_ptr<float>(),
                        .out = out.data_ptr()},
                       sequences, stream);
}

bool CudaLlama::Streams(int64_t rows) const {
  return rows > 0 && rows <= kGraphSequences.back() && streamed_.contains(GraphSequences(rows));
}

at::Tensor CudaLlama::Forward(const at::Tensor& rows, const Batch& batch) const {
  // Copied by a kernel: in a graph, a kernel may overlap with another, but not with a plain copy.
  at::Tensor residual = rows * 1;
  at::Tensor normed = at::empty_like(residual);
  at::Tensor seen = at::empty({rows.size(0), config_.num_heads * config_.head_dim}, rows.options());
  at::Tensor gated = at::empty({rows.size(0), config_.intermediate_size}, rows.options());
  at::Tensor delta;
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const CudaDecoderWeights::Layer& layer = weights_.layers[i];
    AddNorm(residual, delta, layer.input_norm, normed);
    const at::Tensor qkv = layer.qkv.Multiply(normed, Streams(normed.size(0)));
    Attend(caches_[i], qkv, batch, seen);
    if (i + 1 == weights_.layers.size() && batch.wanted.defined()) {
      // Behind the last attention only the rows that are wanted matter: of a prompt one or none.
      const int64_t wanted = batch.wanted.size(0);
      if (wanted == 0) return at::empty({0, config_.vocab_size}, rows.options());
      residual = residual.index_select(0, batch.wanted);
      seen = seen.index_select(0, batch.wanted);
      normed = at::empty_like(residual);
      gated = at::empty({wanted, config_.intermediate_size}, rows.options());
    }
    const bool stream = Streams(seen.size(0));
    delta = layer.o.Multiply(seen, stream);
    AddNorm(residual, delta, layer.post_attention_norm, normed);
    layer.gate_up.MultiplyGated(normed, gated, stream);
    delta = layer.down.Multiply(gated, stream);
  }
  AddNorm(residual, delta, weights_.norm, normed);
  return weights_.lm_head.Multiply(normed, Streams(normed.size(0)));
}

at::Tensor CudaLlama::Step(const at::Tensor& rows, std::span<const StepSequence> sequences,
                           std::span<const int64_t> wanted) {
  c10::InferenceMode guard;
  return cuda::Download(Logits(rows, sequences, wanted));
}

bool CudaLlama::draws() const { return ops::Enabled(ops::Feature::kSampling); }

DrawnStep CudaLlama::StepAndDraw(const at::Tensor& rows, std::span<const StepSequence> sequences,
                                 std::span<const int64_t> wanted,
                                 std::span<const std::optional<TokenChoice>> choices,
                                 int64_t known_ids) {
  c10::InferenceMode guard;
  if (choices.size() != wanted.size() || known_ids < 1 || known_ids > config_.vocab_size) {
    throw std::invalid_argument("decoder: " + std::to_string(choices.size()) + " choices among " +
                                std::to_string(known_ids) + " ids for " +
                                std::to_string(wanted.size()) + " rows");
  }
  std::vector<cuda::SampleChoice> drawn;
  std::vector<int32_t> others;
  for (size_t i = 0; i < choices.size(); ++i) {
    const auto row = static_cast<int32_t>(i);
    if (!choices[i]) {
      others.push_back(row);
      continue;
    }
    drawn.push_back({.row = row,
                     .top_k = choices[i]->top_k,
                     .temperature = choices[i]->temperature,
                     .top_p = choices[i]->top_p,
                     .min_p = choices[i]->min_p,
                     .uniform = choices[i]->uniform});
  }
  const auto count = static_cast<int64_t>(drawn.size());
  const auto words = static_cast<int64_t>(count * sizeof(cuda::SampleChoice) / sizeof(int32_t));
  // On their way before the step: they wait for nothing.
  const at::Tensor on_device =
      Upload({reinterpret_cast<const int32_t*>(drawn.data()), static_cast<size_t>(words)});
  const at::Tensor logits = Logits(rows, sequences, wanted);
  DrawnStep result;
  result.ids.assign(choices.size(), DrawnStep::kNotAsked);
  if (count > 0) {
    const at::Tensor ids = at::empty({count}, on_device.options());
    cuda::SampleTokens(
        {.logits = logits.const_data_ptr<float>(),
         .stride = logits.stride(0),
         .width = static_cast<int>(known_ids),
         .choices = reinterpret_cast<const cuda::SampleChoice*>(on_device.const_data_ptr()),
         .ids = ids.data_ptr<int32_t>()},
        count, cuda::CurrentStream(device_));
    const at::Tensor host = cuda::Download(ids);
    for (int64_t i = 0; i < count; ++i) {
      result.ids[drawn[i].row] = host.const_data_ptr<int32_t>()[i];
    }
  }
  if (count == 0) {
    result.logits = cuda::Download(logits);
  } else if (!others.empty()) {
    result.logits = cuda::Download(logits.index_select(0, Upload(others)));
  }
  return result;
}

at::Tensor CudaLlama::Logits(const at::Tensor& rows, std::span<const StepSequence> sequences,
                             std::span<const int64_t> wanted) {
  const StepRows plan = PlanStepRows(config_, num_blocks_, rows.sizes(), sequences, wanted);
  if (rows.device() != device_ || rows.scalar_type() != weights_.embed_tokens.scalar_type()) {
    throw std::invalid_argument("decoder: rows of another device or dtype");
  }
  const bool all = std::ranges::equal(wanted, std::views::iota(int64_t{0}, rows.size(0)));
  const bool single = std::ranges::all_of(sequences, [](const auto& s) { return s.tokens == 1; });
  DecodeGraph* const graph = options_.graphs && single && rows.size(0) <= kGraphSequences.back()
                                 ? GraphFor(rows.size(0), SplitsOf(LongestOf(sequences)))
                                 : nullptr;
  if (graph != nullptr) {
    const at::Tensor logits = Decode(*graph, rows, sequences, plan.positions, plan.slots);
    return all ? logits
               : logits.index_select(0, Upload(std::vector<int32_t>(wanted.begin(), wanted.end())));
  }

  // One upload of everything, then views into it.
  std::vector<int32_t> packed = plan.positions;
  packed.insert(packed.end(), plan.slots.begin(), plan.slots.end());
  const auto wanted_begin = static_cast<int64_t>(packed.size());
  packed.insert(packed.end(), wanted.begin(), wanted.end());
  Batch batch;
  std::vector<int32_t> decode_rows, lengths;
  std::vector<std::span<const int32_t>> tables;
  std::vector<int64_t> chunk_blocks;  // where the blocks of each chunk begin
  int64_t begin = 0, width = 0;
  for (const StepSequence& sequence : sequences) {
    const int64_t length = sequence.computed + sequence.tokens;
    const auto blocks = sequence.blocks.first(BlocksOf(length));
    if (sequence.tokens == 1) {
      decode_rows.push_back(static_cast<int32_t>(begin));
      lengths.push_back(static_cast<int32_t>(length));
      tables.push_back(blocks);
      width = std::max(width, BlocksOf(length));
      batch.splits = std::max(batch.splits, SplitsOf(length));
    } else {
      batch.chunks.push_back(
          {.begin = begin, .tokens = sequence.tokens, .computed = sequence.computed, .blocks = {}});
      chunk_blocks.push_back(static_cast<int64_t>(packed.size()));
      packed.insert(packed.end(), blocks.begin(), blocks.end());
    }
    begin += sequence.tokens;
  }
  const auto decode_begin = static_cast<int64_t>(packed.size());
  const auto count = static_cast<int64_t>(lengths.size());
  packed.insert(packed.end(), decode_rows.begin(), decode_rows.end());
  packed.insert(packed.end(), lengths.begin(), lengths.end());
  for (const std::span<const int32_t> table : tables) {
    packed.insert(packed.end(), table.begin(), table.end());
    packed.resize(packed.size() + width - table.size());
  }
  const at::Tensor inputs = Upload(packed);
  batch.positions = inputs.narrow(0, 0, begin);
  batch.slots = inputs.narrow(0, begin, begin);
  if (!all) batch.wanted = inputs.narrow(0, wanted_begin, static_cast<int64_t>(wanted.size()));
  batch.decode_rows = inputs.narrow(0, decode_begin, count);
  batch.lengths = inputs.narrow(0, decode_begin + count, count);
  batch.tables = inputs.narrow(0, decode_begin + 2 * count, count * width).view({count, width});
  for (size_t i = 0; i < batch.chunks.size(); ++i) {
    Batch::Chunk& chunk = batch.chunks[i];
    chunk.blocks = inputs.narrow(0, chunk_blocks[i], BlocksOf(chunk.computed + chunk.tokens));
  }
  return Forward(rows.contiguous(), batch).to(at::kFloat);
}

void CudaLlama::CopyBlock(int32_t from, int32_t to) {
  CheckCopy(from, to, num_blocks_);
  c10::InferenceMode guard;
  kv_.select(2, to).copy_(kv_.select(2, from));
}

}  // namespace llava
