#include "tests/gpu/bench.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <iostream>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "model/ops/cuda/runtime.h"

namespace llava::bench {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

Shape ShapeOf(const std::string& name) {
  Shape shape;
  shape.decoder.max_position_embeddings = 4096;
  if (name == "7b") {
    shape.pictures = {1, 8, 32};
    shape.copy_bytes = int64_t{2} << 30;
    shape.matrix = 8192;
    shape.prompt = 2048;
    shape.batches = {1, 2, 4, 8, 16, 32, 64};
    shape.packed_batches = shape.packed_rows = {1, 8, 16, 64};
    shape.steps = 30;
    shape.rounds = 7;
    shape.calls = 40;
    shape.cold_bytes = int64_t{300} << 20;
    return shape;
  }
  if (name != "tiny") throw std::invalid_argument("unknown shape " + name);
  DecoderConfig& decoder = shape.decoder;
  decoder.hidden_size = 64;
  decoder.intermediate_size = 96;
  decoder.num_layers = 2;
  decoder.num_heads = decoder.num_kv_heads = 2;
  decoder.head_dim = 32;
  decoder.vocab_size = 100;
  shape.tower.hidden_size = 32;
  shape.tower.intermediate_size = 64;
  shape.tower.num_layers = 2;
  shape.tower.num_heads = 2;
  shape.tower.image_size = 28;
  shape.pictures = {1, 2};
  shape.copy_bytes = 1 << 20;
  shape.matrix = 64;
  shape.prompt = 150;
  shape.batches = {1, 2, 4};
  shape.packed_batches = shape.packed_rows = {1, 9};
  shape.steps = shape.rounds = 1;
  shape.calls = 2;
  shape.cold_bytes = 1 << 14;
  return shape;
}

void PartPrinter::operator()(const std::string& name, const std::function<json()>& measure) {
  json found;
  try {
    found[name] = measure();
  } catch (const c10::Error& error) {
    found[name] = {{"error", error.what_without_backtrace()}};
    failed_ = true;
  } catch (const std::exception& error) {
    found[name] = {{"error", error.what()}};
    failed_ = true;
  }
  std::cout << found << std::endl;
}

void Wait(at::Device device) {
  cuda::Download(at::zeros({1}, at::TensorOptions(device).dtype(at::kFloat)));
}

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

double RecordedSeconds(at::Device device, int rounds, int calls,
                       const std::function<void(int)>& work) {
  cuda::Graph graph(
      [&work, calls] {
        for (int i = 0; i < calls; ++i) work(i);
      },
      device);
  return Seconds(device, rounds, 1, [&graph](int) { graph.Run(); }) / calls;
}

json MeasureDevice(at::Device device, const Shape& shape, Limits& limits) {
  const auto options = at::TensorOptions(device).dtype(at::kBFloat16);
  const at::Tensor from = at::ones({shape.copy_bytes / 2}, options), to = at::empty_like(from);
  const double copy = Seconds(device, 5, 5, [&](int) { to.copy_(from); });
  limits.copy = 2.0 * static_cast<double>(shape.copy_bytes) / copy;
  const double sum = Seconds(device, 5, 5, [&](int) { from.view(at::kFloat).sum(); });
  const int64_t n = shape.matrix;
  const at::Tensor a = at::randn({n, n}, options), b = at::randn({n, n}, options);
  at::Tensor c = at::empty({n, n}, options);
  const double product = Seconds(device, 5, 5, [&](int) { at::mm_out(c, a, b); });
  limits.product = 2.0 * static_cast<double>(n * n * n) / product;
  return {{"copy_gb_per_second", limits.copy / 1e9},
          {"read_gb_per_second", static_cast<double>(shape.copy_bytes) / sum / 1e9},
          {"matmul_tflop_per_second", limits.product / 1e12}};
}

}  // namespace llava::bench
