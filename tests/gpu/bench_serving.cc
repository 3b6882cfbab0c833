// CudaLlama with random weights: decoding behind a context, and prompts.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>

#include "model/nn/cuda_llama.h"
#include "model/nn/cuda_weights.h"
#include "model/nn/packed_weights.h"
#include "model/nn/step_rows.h"
#include "model/ops/cpu/thread_pool.h"
#include "tests/gpu/bench.h"

namespace llava::bench {
namespace {

using nlohmann::json;
using ops::cpu::PackedMatrix;
using ops::cpu::WeightFormat;

class Weights {
 public:
  Weights(at::Device device, const DecoderConfig& config) : device_(device), c_(config) {}

  CudaDecoderWeights Plain() const {
    CudaDecoderWeights weights{.embed_tokens = Matrix(c_.vocab_size, c_.hidden_size),
                               .norm = Norm(),
                               .lm_head = CudaMatrix(Matrix(c_.vocab_size, c_.hidden_size)),
                               .layers = {}};
    for (int64_t i = 0; i < c_.num_layers; ++i) {
      weights.layers.push_back(
          {.input_norm = Norm(),
           .post_attention_norm = Norm(),
           .qkv = CudaMatrix(Matrix(QWidth() + 2 * KvWidth(), c_.hidden_size)),
           .o = CudaMatrix(Matrix(c_.hidden_size, QWidth())),
           .gate_up = CudaMatrix(Matrix(2 * c_.intermediate_size, c_.hidden_size)),
           .down = CudaMatrix(Matrix(c_.hidden_size, c_.intermediate_size))});
    }
    return weights;
  }

  // All layers have the same weights, each in memory of its own.
  CudaDecoderWeights Packed(const PackOptions& options) const {
    ops::cpu::ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    const auto pack = [&](int64_t out, int64_t in, const PackOptions& how) {
      const at::Tensor weights = Matrix(out, in).cpu();
      PackedMatrix packed(out, in, how);
      packed.Append(pool, ops::cpu::SourceElement::kBFloat16, weights.const_data_ptr(), out, in);
      return packed;
    };
    const PackedMatrix qkv = pack(QWidth() + 2 * KvWidth(), c_.hidden_size, options);
    const PackedMatrix o = pack(c_.hidden_size, QWidth(), options);
    const PackedMatrix gate_up = pack(2 * c_.intermediate_size, c_.hidden_size, options);
    const PackedMatrix down = pack(c_.hidden_size, c_.intermediate_size, options);
    const PackOptions head{WeightFormat::kInt8, 128, true};
    CudaDecoderWeights weights{
        .embed_tokens = Matrix(c_.vocab_size, c_.hidden_size),
        .norm = Norm(),
        .lm_head = CudaMatrix(pack(c_.vocab_size, c_.hidden_size, head), device_),
        .layers = {}};
    for (int64_t i = 0; i < c_.num_layers; ++i) {
      weights.layers.push_back({.input_norm = Norm(),
                                .post_attention_norm = Norm(),
                                .qkv = CudaMatrix(qkv, device_),
                                .o = CudaMatrix(o, device_),
                                .gate_up = CudaMatrix(gate_up, device_),
                                .down = CudaMatrix(down, device_)});
    }
    return weights;
  }

 private:
  int64_t QWidth() const { return c_.num_heads * c_.head_dim; }
  int64_t KvWidth() const { return c_.num_kv_heads * c_.head_dim; }
  at::TensorOptions Options() const { return at::TensorOptions(device_).dtype(at::kBFloat16); }
  at::Tensor Matrix(int64_t out, int64_t in) const {
    return at::randn({out, in}, Options()).mul_(1 / std::sqrt(static_cast<double>(in)));
  }
  at::Tensor Norm() const { return at::ones({c_.hidden_size}, Options()); }

  at::Device device_;
  const DecoderConfig& c_;
};

class Serving {
 public:
  Serving(at::Device device, const Shape& shape, const Limits& limits, CudaDecoderWeights weights,
          const ServingCase& which)
      : device_(device),
        shape_(shape),
        c_(shape.decoder),
        limits_(limits),
        context_(which.context),
        most_(*std::max_element(which.batches.begin(), which.batches.end())),
        decoder_(c_, std::move(weights),
                 {.kv_bytes = static_cast<uint64_t>(
                      std::max(most_ * BlocksOf(context_), BlocksOf(shape.prompt)) *
                      KvBlockBytes(c_, 2)),
                  .graphs = which.graphs}) {
    Fill();
  }

  uint64_t weight_bytes() const { return decoder_.weight_bytes(); }

  // What a worker does before it serves.
  json Prepare() {
    const auto begin = std::chrono::steady_clock::now();
    std::chrono::duration<double> longest{0};
    const std::string measured =
        decoder_.Prepare(most_, context_, [&](const std::function<void()>& record) {
          const auto before = std::chrono::steady_clock::now();
          record();
          longest = std::max<std::chrono::duration<double>>(
              longest, std::chrono::steady_clock::now() - before);
        });
    const std::chrono::duration<double> all = std::chrono::steady_clock::now() - begin;
    return {{"graphs", decoder_.num_graphs()},
            {"streamed", decoder_.streamed()},  // the sizes for which streams were quicker
            {"measured", measured},
            {"milliseconds", all.count() * 1e3},
            {"longest_milliseconds", longest.count() * 1e3}};
  }

  // The last of context_ tokens, again and again.
  json Decode(int64_t batch) {
    std::vector<std::vector<int32_t>> blocks;
    std::vector<StepSequence> sequences;
    std::vector<int64_t> wanted;
    for (int64_t i = 0; i < batch; ++i) {
      blocks.push_back(BlocksFrom(i * BlocksOf(context_), BlocksOf(context_)));
      wanted.push_back(i);
    }
    for (const auto& table : blocks) {
      sequences.push_back({.tokens = 1, .computed = context_ - 1, .blocks = table});
    }
    const std::vector<int32_t> ids = Ids(batch);
    const double seconds = Seconds(device_, shape_.steps, 1, [&](int) {
      decoder_.Step(decoder_.Embed(ids), sequences, wanted);
    });
    // What a step must read: the matrices, packed as they are, and what attention sees.
    // The same with tokens that are drawn there, instead of logits that come back.
    const std::vector<std::optional<TokenChoice>> choices(
        static_cast<size_t>(batch),
        TokenChoice{.temperature = 1, .top_p = 0.9f, .min_p = 0, .top_k = 0, .uniform = 0.4});
    const double drawn = Seconds(device_, shape_.steps, 1, [&](int) {
      decoder_.StepAndDraw(decoder_.Embed(ids), sequences, wanted, choices, c_.vocab_size);
    });
    const double bytes = static_cast<double>(decoder_.weights().step_bytes()) +
                         static_cast<double>(batch * BlocksOf(context_) * KvBlockBytes(c_, 2));
    return {{"milliseconds", seconds * 1e3},
            {"tokens_per_second", static_cast<double>(batch) / seconds},
            {"tokens_per_second_drawn", static_cast<double>(batch) / drawn},
            {"gb_per_second", bytes / seconds / 1e9},
            {"share_of_copy_bandwidth", bytes / seconds / limits_.copy}};
  }

  json Prefill() {
    const int64_t tokens = shape_.prompt;
    const std::vector<int32_t> blocks = BlocksFrom(0, BlocksOf(tokens)), ids = Ids(tokens);
    const double layer =
        static_cast<double>(c_.hidden_size) *
        (2.0 * static_cast<double>((c_.num_heads + c_.num_kv_heads) * c_.head_dim) +
         3.0 * static_cast<double>(c_.intermediate_size));
    json found;
    for (const int64_t piece : {tokens, tokens / 4}) {
      const double seconds = Seconds(device_, 5, 1, [&](int) {
        for (int64_t begin = 0; begin < tokens; begin += piece) {
          const int64_t count = std::min(piece, tokens - begin);
          const StepSequence sequence{.tokens = count, .computed = begin, .blocks = blocks};
          decoder_.Step(decoder_.Embed(std::span(ids).subspan(begin, count)), {&sequence, 1},
                        std::vector<int64_t>{count - 1});
        }
      });
      const auto length = static_cast<double>(tokens);
      // Half of the scores are seen.
      const double attention =
          2.0 * length * length * static_cast<double>(c_.num_heads * c_.head_dim);
      const double work = static_cast<double>(c_.num_layers) * (2.0 * length * layer + attention) +
                          2.0 * static_cast<double>(c_.vocab_size * c_.hidden_size);
      found["pieces_of_" + std::to_string(piece)] = {
          {"milliseconds", seconds * 1e3},
          {"tokens_per_second", length / seconds},
          {"tflop_per_second", work / seconds / 1e12},
          {"share_of_matmul_peak", work / seconds / limits_.product}};
    }
    return found;
  }

 private:
  std::vector<int32_t> Ids(int64_t count) const {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(static_cast<int32_t>((i * 7919 + 13) % c_.vocab_size));
    }
    return ids;
  }
  static std::vector<int32_t> BlocksFrom(int64_t first, int64_t count) {
    std::vector<int32_t> blocks;
    for (int64_t i = 0; i < count; ++i) blocks.push_back(static_cast<int32_t>(first + i));
    return blocks;
  }
  // Keys and values of sequences of context_ tokens.
  void Fill() {
    const at::Tensor rows = decoder_.Embed(Ids(context_));
    for (int64_t i = 0; i < most_; ++i) {
      const std::vector<int32_t> blocks = BlocksFrom(i * BlocksOf(context_), BlocksOf(context_));
      const StepSequence sequence{.tokens = context_, .blocks = blocks};
      decoder_.Step(rows, {&sequence, 1}, {});
    }
  }

  at::Device device_;
  const Shape& shape_;
  const DecoderConfig& c_;
  const Limits& limits_;
  const int64_t context_;  // tokens of each sequence
  const int64_t most_;     // sequences
  CudaLlama decoder_;
};

CudaDecoderWeights WeightsOf(at::Device device, const DecoderConfig& config,
                             const std::string& name) {
  const Weights weights(device, config);
  if (name == "bf16") return weights.Plain();
  if (name == "int8") return weights.Packed({WeightFormat::kInt8, 128, true});
  if (name == "int4") return weights.Packed({WeightFormat::kInt4, 64, true});
  throw std::invalid_argument("no weights in " + name);
}

}  // namespace

json MeasureServing(at::Device device, const Shape& shape, const Limits& limits,
                    const ServingCase& which) {
  Serving serving(device, shape, limits, WeightsOf(device, shape.decoder, which.weights), which);
  json found = {{"weights", which.weights},
                {"weight_bytes", serving.weight_bytes()},
                {"graphs", which.graphs}};
  if (which.graphs && which.prepare) found["prepared"] = serving.Prepare();
  for (const int64_t batch : which.batches) {
    found["decode"][std::to_string(batch)] = serving.Decode(batch);
  }
  if (which.prefill) found["prefill"] = serving.Prefill();
  return found;
}

}  // namespace llava::bench
