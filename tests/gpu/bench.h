#pragma once

// What the parts of llava_gpu_bench share.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "model/config/model_config.h"

namespace llava::bench {

inline constexpr int64_t kContext = 512;  // tokens of a sequence that is decoded

struct Shape {
  DecoderConfig decoder;
  VisionConfig tower;
  std::vector<int64_t> pictures;  // batches of the tower
  int64_t copy_bytes, matrix, prompt;
  std::vector<int64_t> batches, packed_batches;  // of sequences
  std::vector<int64_t> packed_rows;              // of products
  int steps, rounds, calls;                      // of a graph
  int64_t cold_bytes;                            // more than the caches of the device hold
};
// 7b, or tiny. Throws std::invalid_argument.
Shape ShapeOf(const std::string& name);

// What the device does at best.
struct Limits {
  double copy = 0;     // bytes a second, read and written
  double product = 0;  // floating-point operations a second
};

// Prints what each part of a program found, a JSON object a line. A part that fails takes nothing
// from the others: its error stands in its place.
class PartPrinter {
 public:
  void operator()(const std::string& name, const std::function<nlohmann::json()>& measure);
  bool failed() const { return failed_; }

 private:
  bool failed_ = false;
};

// Waits until the device is done.
void Wait(at::Device device);
// Median seconds of a call of `work`, over `rounds` rounds of `calls` calls.
double Seconds(at::Device device, int rounds, int calls, const std::function<void(int)>& work);
// The same for calls recorded as one graph: without what queueing them costs the host.
double RecordedSeconds(at::Device device, int rounds, int calls,
                       const std::function<void(int)>& work);

nlohmann::json MeasureDevice(at::Device device, const Shape& shape, Limits& limits);
// Products of few rows with the matrices of a layer, by what they read: the library's of plain
// ones, own of packed ones; or, while ops::Feature::kStream is on, those that stream.
nlohmann::json MeasureProducts(at::Device device, const Shape& shape);
// The kernels between the products, for the smallest and the largest batch behind kContext tokens.
nlohmann::json MeasureKernels(at::Device device, const Shape& shape);
nlohmann::json MeasureTower(at::Device device, const Shape& shape, const Limits& limits);

// The decoder with random weights.
struct ServingCase {
  std::string weights = "bf16";  // int8 (in groups of 128), int4 (of 64)
  bool graphs = true;
  bool prepare = true;  // as a worker does before it serves: measures which products to take
  std::vector<int64_t> batches;
  bool prefill = false;
  int64_t context = kContext;
};
nlohmann::json MeasureServing(at::Device device, const Shape& shape, const Limits& limits,
                              const ServingCase& which);

}  // namespace llava::bench
