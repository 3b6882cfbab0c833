// llava_gpu_bench DEVICE SHAPE
//
// Measures the device (copying memory, multiplying matrices), the decoder and the vision tower with
// random weights of SHAPE, and their kernels alone: 7b (LLaVA's tower and decoder of that size), or
// tiny to try this program where no GPU is. Prints a JSON object a line, each when its part is
// finished.

#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include <c10/core/InferenceMode.h>

#include "model/ops/cuda/kernels.h"
#include "model/ops/feature.h"
#include "tests/gpu/bench.h"

namespace llava::bench {
namespace {

int Main(const std::vector<std::string>& arguments) {
  if (arguments.size() != 2) {
    std::cerr << "usage: llava_gpu_bench DEVICE SHAPE\n";
    return 2;
  }
  c10::InferenceMode guard;
  const at::Device device(arguments[0]);
  const Shape shape = ShapeOf(arguments[1]);
  Limits limits;
  PartPrinter part;
  const auto serving = [&](const std::string& name, const ServingCase& which) {
    part(name, [&] { return MeasureServing(device, shape, limits, which); });
  };
  // What LLAVA_CUDA_WITHOUT leaves out stays out.
  const bool streams = ops::Enabled(ops::Feature::kStream);
  const bool tiles = ops::Enabled(ops::Feature::kTiles);
  part("device", [&] { return MeasureDevice(device, shape, limits); });
  // Products that stream come last: kernels beside them divide the device's memory otherwise, and a
  // fault in them would take everything behind it.
  ops::Enable(ops::Feature::kStream, false);
  serving("serving_without_streams", {.batches = shape.batches, .prefill = true});
  serving("serving_long_without_streams", {.batches = {1}, .context = 2 * kContext});
  serving("serving_int4_without_streams",
          {.weights = "int4", .batches = shape.packed_batches, .prefill = true});
  serving("serving_int8_without_streams",
          {.weights = "int8", .batches = shape.packed_batches, .prefill = true});
  ops::Enable(ops::Feature::kTiles, false);
  if (tiles) {
    serving("serving_int4_without_tiles",
            {.weights = "int4", .batches = {shape.packed_batches.back()}});
  }
  ops::Enable(ops::Feature::kTiles, tiles);
  part("tower", [&] { return MeasureTower(device, shape, limits); });
  part("kernels", [&] { return MeasureKernels(device, shape); });
  part("products", [&] { return MeasureProducts(device, shape); });
  cuda::SetOverlap(false);
  serving("serving_without_overlap", {.batches = {shape.batches.front(), shape.batches.back()}});
  cuda::SetOverlap(true);
  serving("serving_without_graphs", {.graphs = false, .batches = {1}});
  if (!streams) return part.failed() ? 1 : 0;
  ops::Enable(ops::Feature::kStream, true);
  // 64 with packed weights, too: their kernels share the device with those that stream.
  const std::vector<int64_t> few = {1, 8, shape.packed_batches.back()};
  serving("serving", {.batches = {shape.batches.front(), shape.batches.back()}});
  serving("serving_long", {.batches = {1}, .context = 2 * kContext});
  serving("serving_int4", {.weights = "int4", .batches = few});
  serving("serving_int8", {.weights = "int8", .batches = few});
  // In all steps of few sequences; above, where they were measured to be quicker.
  serving("serving_streamed", {.prepare = false, .batches = {1}});
  serving("serving_int4_streamed", {.weights = "int4", .prepare = false, .batches = {1, 8}});
  part("products_streamed", [&] { return MeasureProducts(device, shape); });
  return part.failed() ? 1 : 0;
}

}  // namespace
}  // namespace llava::bench

int main(int argc, char** argv) {
  try {
    return llava::bench::Main({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "llava_gpu_bench: " << error.what() << "\n";
    return 1;
  }
}
