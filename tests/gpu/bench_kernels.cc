// Products and kernels by themselves, on memory that no cache holds.

#include <algorithm>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "model/nn/cuda_matrix.h"
#include "model/nn/step_rows.h"
#include "model/ops/cpu/packed_matrix.h"
#include "model/ops/cpu/thread_pool.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/runtime.h"
#include "model/ops/feature.h"
#include "tests/gpu/bench.h"

namespace llava::bench {
namespace {

using nlohmann::json;
using ops::cpu::PackedMatrix;
using ops::cpu::WeightFormat;

struct Matrix {
  const char* name;
  int64_t out, in;
};

std::vector<Matrix> MatricesOf(const DecoderConfig& c) {
  const int64_t q_width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
  return {{"qkv", q_width + 2 * kv_width, c.hidden_size},
          {"o", c.hidden_size, q_width},
          {"gate_up", 2 * c.intermediate_size, c.hidden_size},
          {"down", c.hidden_size, c.intermediate_size},
          {"lm_head", c.vocab_size, c.hidden_size}};
}

// How often the matrix has to lie there.
int Copies(const Shape& shape, uint64_t bytes) {
  return static_cast<int>(std::min<uint64_t>(shape.calls, shape.cold_bytes / bytes + 1));
}

// Of a product of `copies`, one after the other, so that none lies in a cache.
json MeasureProduct(at::Device device, const Shape& shape, const std::vector<CudaMatrix>& copies,
                    const at::Tensor& x) {
  const bool stream = ops::Enabled(ops::Feature::kStream);
  const double seconds = RecordedSeconds(device, shape.rounds, shape.calls, [&](int i) {
    copies[i % copies.size()].Multiply(x, stream);
  });
  return {{"microseconds", seconds * 1e6},
          {"gb_per_second", static_cast<double>(copies[0].bytes()) / seconds / 1e9}};
}

// With streams there are products of few rows alone.
bool IsMeasured(const CudaMatrix& matrix, int64_t rows) {
  return !ops::Enabled(ops::Feature::kStream) || rows <= matrix.streamed_rows();
}

json MeasurePlain(at::Device device, const Shape& shape, const Matrix& matrix) {
  const auto options = at::TensorOptions(device).dtype(at::kBFloat16);
  std::vector<CudaMatrix> copies;
  do {
    copies.emplace_back(at::randn({matrix.out, matrix.in}, options));
  } while (static_cast<int>(copies.size()) < Copies(shape, copies[0].bytes()));
  json found;
  for (const int64_t rows : {1, 2, 4, 64}) {
    if (!IsMeasured(copies[0], rows)) continue;
    const at::Tensor x = at::randn({rows, matrix.in}, options);
    found[std::to_string(rows)] = MeasureProduct(device, shape, copies, x);
  }
  return found;
}

json MeasurePacked(at::Device device, const Shape& shape, const Matrix& matrix,
                   WeightFormat format) {
  const auto options = at::TensorOptions(device).dtype(at::kBFloat16);
  PackedMatrix packed(matrix.out, matrix.in, {format, 0, true});
  {
    ops::cpu::ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    const at::Tensor weights = at::randn({matrix.out, matrix.in}, options).cpu();
    packed.Append(pool, ops::cpu::SourceElement::kBFloat16, weights.const_data_ptr(), matrix.out,
                  matrix.in);
  }
  std::vector<CudaMatrix> copies;
  do {
    copies.emplace_back(packed, device);
  } while (static_cast<int>(copies.size()) < Copies(shape, copies[0].bytes()));
  json found;
  for (const int64_t rows : shape.packed_rows) {
    if (!IsMeasured(copies[0], rows)) continue;
    const at::Tensor x = at::randn({rows, matrix.in}, options);
    found[std::to_string(rows)] = MeasureProduct(device, shape, copies, x);
    if (rows <= 16 || !ops::Enabled(ops::Feature::kTiles)) continue;
    ops::Enable(ops::Feature::kTiles, false);
    found[std::to_string(rows) + "_without_tiles"] = MeasureProduct(device, shape, copies, x);
    ops::Enable(ops::Feature::kTiles, true);
  }
  if (ops::Enabled(ops::Feature::kStream)) return found;
  const double unpack = RecordedSeconds(
      device, shape.rounds, 4, [&](int i) { copies[i % copies.size()].Dense(at::kBFloat16); });
  found["unpack_microseconds"] = unpack * 1e6;
  return found;
}

}  // namespace

json MeasureProducts(at::Device device, const Shape& shape) {
  json found;
  for (const Matrix& matrix : MatricesOf(shape.decoder)) {
    found["bf16"][matrix.name] = MeasurePlain(device, shape, matrix);
    found["int8"][matrix.name] = MeasurePacked(device, shape, matrix, WeightFormat::kInt8);
    if (std::string(matrix.name) == "lm_head") continue;  // int8 beside int4, too
    found["int4"][matrix.name] = MeasurePacked(device, shape, matrix, WeightFormat::kInt4);
  }
  return found;
}

json MeasureKernels(at::Device device, const Shape& shape) {
  const DecoderConfig& c = shape.decoder;
  const auto options = at::TensorOptions(device).dtype(at::kBFloat16);
  const auto ints = options.dtype(at::kInt);
  const auto element = cuda::Element::kBFloat16;
  const auto heads = static_cast<int>(c.num_heads), kv_heads = static_cast<int>(c.num_kv_heads);
  const auto head_dim = static_cast<int>(c.head_dim);
  json found;
  for (const int64_t count : {shape.batches.front(), shape.batches.back()}) {
    const auto time = [&](const std::function<void(int)>& work) {
      return RecordedSeconds(device, shape.rounds, shape.calls, work) * 1e6;
    };
    json& row = found[std::to_string(count)];
    const int64_t blocks = BlocksOf(kContext), splits = kContext / cuda::kSplitTokens;
    const int64_t layers = count == 1 ? 32 : 2;
    at::Tensor kv = at::randn(
        {layers, 2, count * blocks * kKvBlockTokens, c.num_kv_heads * c.head_dim}, options);
    const at::Tensor qkv = at::randn({count, (heads + 2 * kv_heads) * c.head_dim}, options);
    const at::Tensor out = at::empty({count, heads * c.head_dim}, options);
    const at::Tensor tables = at::arange(count * blocks, ints), rows = at::arange(count, ints);
    const at::Tensor lengths = at::full({count}, kContext, ints);
    const at::Tensor partial =
        at::empty({count, heads, splits, head_dim + 2}, options.dtype(at::kFloat));
    const double attention = time([&](int i) {
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
                           count, cuda::CurrentStream(device));
    });
    row["attention_microseconds"] = attention;
    row["attention_gb_per_second"] =
        static_cast<double>(kv.nbytes()) / static_cast<double>(layers) / attention / 1e3;

    const at::Tensor angles =
        at::ones({c.max_position_embeddings, head_dim / 2}, options.dtype(at::kFloat));
    const at::Tensor slots = at::arange(count, ints) * kKvBlockTokens;
    row["rope_microseconds"] = time([&](int i) {
      const at::Tensor layer = kv.select(0, i % layers);
      cuda::RopeToCache(element,
                        {.qkv = qkv.data_ptr(),
                         .cos = angles.const_data_ptr<float>(),
                         .sin = angles.const_data_ptr<float>(),
                         .positions = rows.const_data_ptr<int32_t>(),
                         .slots = slots.const_data_ptr<int32_t>(),
                         .k_cache = layer.select(0, 0).data_ptr(),
                         .v_cache = layer.select(0, 1).data_ptr(),
                         .num_heads = heads,
                         .num_kv_heads = kv_heads,
                         .head_dim = head_dim},
                        count, cuda::CurrentStream(device));
    });

    const at::Tensor x = at::zeros({count, c.hidden_size}, options), y = at::zeros_like(x);
    const at::Tensor weight = at::ones({c.hidden_size}, options);
    row["norm_microseconds"] = time([&](int) {
      cuda::AddRmsNorm(element,
                       {.residual = x.data_ptr(),
                        .delta = y.const_data_ptr(),
                        .weight = weight.const_data_ptr(),
                        .out = y.data_ptr(),
                        .width = static_cast<int>(c.hidden_size),
                        .eps = 1e-5f},
                       count, cuda::CurrentStream(device));
    });

    const at::Tensor logits = at::randn({count, c.vocab_size}, options.dtype(at::kFloat)) * 3;
    const at::Tensor ids = at::empty({count}, ints);
    for (const auto& [name, choice] : std::vector<std::pair<std::string, cuda::SampleChoice>>{
             {"greedy",
              {.row = 0, .top_k = 0, .temperature = 0, .top_p = 1, .min_p = 0, .uniform = 0}},
             {"warm",
              {.row = 0, .top_k = 0, .temperature = 1, .top_p = 1, .min_p = 0, .uniform = 0.4}},
             {"top_p",
              {.row = 0, .top_k = 0, .temperature = 1, .top_p = 0.9f, .min_p = 0, .uniform = 0.4}},
             {"all",
              {.row = 0,
              .top_k = 40,
              .temperature = 0.8f,
              .top_p = 0.9f,
              .min_p = 0.01f,
              .uniform = 0.4}}}) {
      std::vector<cuda::SampleChoice> list(static_cast<size_t>(count), choice);
      for (size_t i = 0; i < list.size(); ++i) list[i].row = static_cast<int32_t>(i);
      const at::Tensor choices =
          at::from_blob(list.data(), {static_cast<int64_t>(list.size() * sizeof list[0])},
                        at::kByte)
              .to(device, /*non_blocking=*/false, /*copy=*/true);
      row["sample_" + name + "_microseconds"] = time([&](int) {
        cuda::SampleTokens(
            {.logits = logits.const_data_ptr<float>(),
             .stride = logits.stride(0),
             .width = static_cast<int>(c.vocab_size),
             .choices = reinterpret_cast<const cuda::SampleChoice*>(choices.const_data_ptr()),
             .ids = ids.data_ptr<int32_t>()},
            count, cuda::CurrentStream(device));
      });
    }

    const at::Tensor product = at::randn({count, 2 * c.intermediate_size}, options);
    const at::Tensor gated = at::empty({count, c.intermediate_size}, options);
    row["swiglu_microseconds"] = time([&](int) {
      cuda::SwiGlu(element,
                   {.gate_up = product.const_data_ptr(),
                    .out = gated.data_ptr(),
                    .width = static_cast<int>(c.intermediate_size)},
                   count, cuda::CurrentStream(device));
    });
  }
  return found;
}

}  // namespace llava::bench
