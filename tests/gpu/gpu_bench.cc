// llava_gpu_bench DEVICE SHAPE
//
// Measures the device (copying memory, multiplying matrices), the kernels alone, and the decoder
// with random weights of SHAPE: 7b, or tiny to try this program where no GPU is. Prints a JSON
// object a line, each when its part is finished.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <functional>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <nlohmann/json.hpp>

#include "model/nn/cuda_llama.h"
#include "model/nn/decoder_weights.h"
#include "model/nn/step_rows.h"

namespace llava {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kContext = 512;

struct Shape {
  DecoderConfig config;
  int64_t copy_bytes, matrix, prompt;
  std::vector<int64_t> batches;
  int steps;
};

Shape ShapeOf(const std::string& name) {
  Shape shape;
  shape.config.max_position_embeddings = 4096;
  if (name == "7b") {
    shape.copy_bytes = int64_t{2} << 30;
    shape.matrix = 8192;
    shape.prompt = 2048;
    shape.batches = {1, 2, 4, 8, 16, 32, 64};
    shape.steps = 30;
    return shape;
  }
  if (name != "tiny") throw std::invalid_argument("unknown shape " + name);
  shape.config.hidden_size = 64;
  shape.config.intermediate_size = 96;
  shape.config.num_layers = 2;
  shape.config.num_heads = shape.config.num_kv_heads = 2;
  shape.config.head_dim = 32;
  shape.config.vocab_size = 100;
  shape.copy_bytes = 1 << 20;
  shape.matrix = 64;
  shape.prompt = 150;
  shape.batches = {1, 2, 64};
  shape.steps = 2;
  return shape;
}

// Waits until the device is done.
void Wait(at::Device device) {
  cuda::Download(at::zeros({1}, at::TensorOptions(device).dtype(at::kFloat)));
}

// Median seconds of a call of `work`, over `rounds` rounds of `calls` calls.
double Seconds(at::Device device, int rounds, int calls, const std::function<void(int)>& work) {
  for (int i = 0; i < 3; ++i) work(i);
  Wait(device);
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < calls; ++i) work(i);
    Wait(device);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count() / calls);
  }
  std::nth_element(seconds.begin(), seconds.begin() + rounds / 2, seconds.end());
  return seconds[rounds / 2];
}

class Bench {
 public:
  Bench(at::Device device, Shape shape) : device_(device), shape_(std::move(shape)) {}

  json Device() {
    const auto options = at::TensorOptions(device_).dtype(at::kBFloat16);
    const at::Tensor from = at::ones({shape_.copy_bytes / 2}, options), to = at::empty_like(from);
    const double copy = Seconds(device_, 5, 5, [&](int) { to.copy_(from); });
    copy_ = 2.0 * shape_.copy_bytes / copy;
    const double sum = Seconds(device_, 5, 5, [&](int) { from.view(at::kFloat).sum(); });
    const int64_t n = shape_.matrix;
    const at::Tensor a = at::randn({n, n}, options), b = at::randn({n, n}, options);
    at::Tensor c = at::empty({n, n}, options);
    const double product = Seconds(device_, 5, 5, [&](int) { at::mm_out(c, a, b); });
    peak_ = 2.0 * n * n * n / product;
    return {{"copy_gb_per_second", copy_ / 1e9},
            {"read_gb_per_second", shape_.copy_bytes / sum / 1e9},
            {"matmul_tflop_per_second", peak_ / 1e12}};
  }

  // Products of one and a few rows with each matrix of a layer, own and the library's.
  json Products() {
    const DecoderConfig& c = shape_.config;
    const int64_t q_width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
    const auto options = at::TensorOptions(device_).dtype(at::kBFloat16);
    struct Matrix {
      const char* name;
      int64_t out, in;
    };
    json found;
    for (const auto& [name, out, in] :
         {Matrix{"qkv", q_width + 2 * kv_width, c.hidden_size}, Matrix{"o", c.hidden_size, q_width},
          Matrix{"gate_up", 2 * c.intermediate_size, c.hidden_size},
          Matrix{"down", c.hidden_size, c.intermediate_size},
          Matrix{"lm_head", c.vocab_size, c.hidden_size}}) {
      const int64_t bytes = out * in * 2;
      // So many that no cache holds them.
      const int copies = static_cast<int>((int64_t{400} << 20) / bytes) + 1;
      const at::Tensor weights = at::randn({std::min(copies, 20), out, in}, options);
      const auto weight_of = [&](int i) { return weights.select(0, i % weights.size(0)); };
      for (const int64_t rows : {1, 4, 64}) {
        const at::Tensor x = at::randn({rows, in}, options), y = at::empty({rows, out}, options);
        const auto rate = [&](const std::function<void(int)>& work) {
          return bytes / Seconds(device_, 5, 40, work) / 1e9;
        };
        json& row = found[name][std::to_string(rows)];
        row["library_gb_per_second"] = rate([&](int i) { at::linear(x, weight_of(i)); });
        if (rows > cuda::kFewRows) continue;
        row["own_gb_per_second"] = rate([&](int i) {
          cuda::MultiplyFewRows(cuda::Element::kBFloat16,
                                {.x = x.const_data_ptr(),
                                 .weight = weight_of(i).const_data_ptr(),
                                 .out = y.data_ptr(),
                                 .in_width = static_cast<int>(in),
                                 .out_width = static_cast<int>(out),
                                 .gated = false},
                                rows, cuda::CurrentStream(device_));
        });
      }
    }
    return found;
  }

  // Attention of one query for each sequence of kContext tokens, and the small kernels.
  json Kernels() {
    const DecoderConfig& c = shape_.config;
    const auto options = at::TensorOptions(device_).dtype(at::kBFloat16);
    const auto ints = options.dtype(at::kInt);
    const auto element = cuda::Element::kBFloat16;
    const auto heads = static_cast<int>(c.num_heads), kv_heads = static_cast<int>(c.num_kv_heads);
    const auto head_dim = static_cast<int>(c.head_dim);
    json found;
    for (const int64_t count : {1, 64}) {
      const int64_t blocks = BlocksOf(kContext), splits = kContext / cuda::kSplitTokens;
      // As many layers as the caches cannot hold.
      const int64_t layers = count == 1 ? 8 : 2;
      const at::Tensor kv = at::randn(
          {layers, 2, count * blocks * kKvBlockTokens, c.num_kv_heads * c.head_dim}, options);
      const at::Tensor qkv = at::randn({count, (heads + 2 * kv_heads) * c.head_dim}, options);
      const at::Tensor out = at::empty({count, heads * c.head_dim}, options);
      const at::Tensor tables = at::arange(count * blocks, ints), rows = at::arange(count, ints);
      const at::Tensor lengths = at::full({count}, kContext, ints);
      const at::Tensor partial =
          at::empty({count, heads, splits, head_dim + 2}, options.dtype(at::kFloat));
      const double attention = Seconds(device_, 5, 20, [&](int i) {
        const at::Tensor layer = kv.select(0, i % layers);
        cuda::PagedAttention(element,
                             {.q = qkv.const_data_ptr(),
                              .q_stride = qkv.size(1),
                              .k_cache = layer.select(0, 0).const_data_ptr(),
                              .v_cache = layer.select(0, 1).const_data_ptr(),
                              .rows = rows.const_data_ptr<int32_t>(),
                              .lengths = lengths.const_data_ptr<int32_t>(),
                              .tables = tables.const_data_ptr<int32_t>(),
                              .table_stride = static_cast<int>(blocks),
                              .num_heads = heads,
                              .num_kv_heads = kv_heads,
                              .head_dim = head_dim,
                              .scale = 0.1f,
                              .splits = static_cast<int>(splits),
                              .partial = partial.data_ptr<float>(),
                              .out = out.data_ptr()},
                             count, cuda::CurrentStream(device_));
      });
      const at::Tensor x = at::randn({count, c.hidden_size}, options), y = at::empty_like(x);
      const at::Tensor weight = at::ones({c.hidden_size}, options);
      const double norm = Seconds(device_, 5, 50, [&](int) {
        cuda::AddRmsNorm(element,
                         {.residual = x.data_ptr(),
                          .delta = y.const_data_ptr(),
                          .weight = weight.const_data_ptr(),
                          .out = y.data_ptr(),
                          .width = static_cast<int>(c.hidden_size),
                          .eps = 1e-5f},
                         count, cuda::CurrentStream(device_));
      });
      found[std::to_string(count)] = {
          {"attention_microseconds", attention * 1e6},
          {"attention_gb_per_second", kv.nbytes() / layers / attention / 1e9},
          {"norm_microseconds", norm * 1e6}};
    }
    return found;
  }

  json Serving(int64_t own_rows, bool graphs, std::vector<int64_t> batches, bool prefill) {
    const DecoderConfig& c = shape_.config;
    const int64_t most = *std::max_element(batches.begin(), batches.end());
    const int64_t blocks = std::max(most * BlocksOf(kContext), BlocksOf(shape_.prompt));
    CudaLlama decoder(c, RandomWeights(),
                      {.kv_bytes = static_cast<uint64_t>(blocks * KvBlockBytes(c, 2)),
                       .graphs = graphs,
                       .own_product_rows = own_rows});
    Fill(decoder, most);
    json found = {{"weight_bytes", decoder.weight_bytes()},
                  {"own_product_rows", own_rows},
                  {"graphs", graphs}};
    for (const int64_t batch : batches) {
      found["decode"][std::to_string(batch)] = Decode(decoder, batch);
    }
    if (prefill) found["prefill"] = Prefill(decoder);
    return found;
  }

 private:
  DecoderWeights RandomWeights() const {
    const DecoderConfig& c = shape_.config;
    const auto options = at::TensorOptions(device_).dtype(at::kBFloat16);
    const auto matrix = [&](int64_t out, int64_t in) {
      return at::randn({out, in}, options).mul_(1 / std::sqrt(static_cast<double>(in)));
    };
    const int64_t q_width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
    DecoderWeights weights;
    weights.embed_tokens = matrix(c.vocab_size, c.hidden_size);
    weights.norm = at::ones({c.hidden_size}, options);
    weights.lm_head = matrix(c.vocab_size, c.hidden_size);
    for (int64_t i = 0; i < c.num_layers; ++i) {
      weights.layers.push_back({.input_norm = weights.norm.clone(),
                                .post_attention_norm = weights.norm.clone(),
                                .q = matrix(q_width, c.hidden_size),
                                .k = matrix(kv_width, c.hidden_size),
                                .v = matrix(kv_width, c.hidden_size),
                                .o = matrix(c.hidden_size, q_width),
                                .gate = matrix(c.intermediate_size, c.hidden_size),
                                .up = matrix(c.intermediate_size, c.hidden_size),
                                .down = matrix(c.hidden_size, c.intermediate_size)});
    }
    return weights;
  }

  std::vector<int32_t> Ids(int64_t count) const {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(static_cast<int32_t>((i * 7919 + 13) % shape_.config.vocab_size));
    }
    return ids;
  }

  static std::vector<int32_t> BlocksFrom(int64_t first, int64_t count) {
    std::vector<int32_t> blocks;
    for (int64_t i = 0; i < count; ++i) blocks.push_back(static_cast<int32_t>(first + i));
    return blocks;
  }

  // Keys and values of `count` sequences of kContext tokens.
  void Fill(CudaLlama& decoder, int64_t count) const {
    const at::Tensor rows = decoder.Embed(Ids(kContext));
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<int32_t> blocks = BlocksFrom(i * BlocksOf(kContext), BlocksOf(kContext));
      const StepSequence sequence{.tokens = kContext, .blocks = blocks};
      decoder.Step(rows, {&sequence, 1}, {});
    }
  }

  // The last of kContext tokens, again and again.
  json Decode(CudaLlama& decoder, int64_t batch) const {
    const DecoderConfig& c = shape_.config;
    std::vector<std::vector<int32_t>> blocks;
    std::vector<StepSequence> sequences;
    std::vector<int64_t> wanted;
    for (int64_t i = 0; i < batch; ++i) {
      blocks.push_back(BlocksFrom(i * BlocksOf(kContext), BlocksOf(kContext)));
      wanted.push_back(i);
    }
    for (const auto& table : blocks) {
      sequences.push_back({.tokens = 1, .computed = kContext - 1, .blocks = table});
    }
    const std::vector<int32_t> ids = Ids(batch);
    const double seconds = Seconds(device_, shape_.steps, 1, [&](int) {
      decoder.Step(decoder.Embed(ids), sequences, wanted);
    });
    // What a step must read: all matrices but the table of embeddings, and what attention sees.
    const double bytes = static_cast<double>(decoder.weight_bytes()) -
                         2.0 * c.vocab_size * c.hidden_size +
                         static_cast<double>(batch * BlocksOf(kContext) * KvBlockBytes(c, 2));
    return {{"milliseconds", seconds * 1e3},
            {"tokens_per_second", batch / seconds},
            {"gb_per_second", bytes / seconds / 1e9},
            {"share_of_copy_bandwidth", bytes / seconds / copy_}};
  }

  json Prefill(CudaLlama& decoder) const {
    const DecoderConfig& c = shape_.config;
    const int64_t tokens = shape_.prompt;
    const std::vector<int32_t> blocks = BlocksFrom(0, BlocksOf(tokens)), ids = Ids(tokens);
    const double layer =
        static_cast<double>(c.hidden_size) *
        (2.0 * (c.num_heads + c.num_kv_heads) * c.head_dim + 3.0 * c.intermediate_size);
    json found;
    for (const int64_t piece : {tokens, tokens / 4}) {
      const double seconds = Seconds(device_, 5, 1, [&](int) {
        for (int64_t begin = 0; begin < tokens; begin += piece) {
          const int64_t count = std::min(piece, tokens - begin);
          const StepSequence sequence{.tokens = count, .computed = begin, .blocks = blocks};
          decoder.Step(decoder.Embed(std::span(ids).subspan(begin, count)), {&sequence, 1},
                       std::vector<int64_t>{count - 1});
        }
      });
      const double attention = 2.0 * tokens * tokens * c.num_heads * c.head_dim;  // half of it seen
      const double work =
          c.num_layers * (2.0 * tokens * layer + attention) + 2.0 * c.vocab_size * c.hidden_size;
      found["pieces_of_" + std::to_string(piece)] = {
          {"milliseconds", seconds * 1e3},
          {"tokens_per_second", tokens / seconds},
          {"tflop_per_second", work / seconds / 1e12},
          {"share_of_matmul_peak", work / seconds / peak_}};
    }
    return found;
  }

  at::Device device_;
  Shape shape_;
  double copy_ = 0, peak_ = 0;
};

int Main(const std::vector<std::string>& arguments) {
  if (arguments.size() != 2) {
    std::cerr << "usage: llava_gpu_bench DEVICE SHAPE\n";
    return 2;
  }
  c10::InferenceMode guard;
  const at::Device device(arguments[0]);
  const Shape shape = ShapeOf(arguments[1]);
  Bench bench(device, shape);
  bool failed = false;
  // A part that fails takes nothing from the others.
  const auto part = [&](const std::string& name, const std::function<json()>& measure) {
    json found;
    try {
      found[name] = measure();
    } catch (const c10::Error& error) {
      found[name] = {{"error", error.what_without_backtrace()}};
      failed = true;
    } catch (const std::exception& error) {
      found[name] = {{"error", error.what()}};
      failed = true;
    }
    std::cout << found << std::endl;
  };
  const std::vector<int64_t> few = {1, 2, 4};
  part("device", [&] { return bench.Device(); });
  part("serving", [&] { return bench.Serving(4, true, shape.batches, true); });
  cuda::SetOverlap(false);
  part("serving_without_overlap", [&] { return bench.Serving(4, true, {1, 64}, false); });
  cuda::SetOverlap(true);
  part("serving_with_cublas_alone", [&] { return bench.Serving(0, true, few, false); });
  part("serving_without_graphs", [&] { return bench.Serving(4, false, {1}, false); });
  part("products", [&] { return bench.Products(); });
  part("kernels", [&] { return bench.Kernels(); });
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  try {
    return llava::Main({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "llava_gpu_bench: " << error.what() << "\n";
    return 1;
  }
}
