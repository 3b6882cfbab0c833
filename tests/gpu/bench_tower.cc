// The vision tower with random weights.

#include <chrono>
#include <string>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/randn.h>

#include "model/checkpoint/memory_tensors.h"
#include "model/nn/clip.h"
#include "tests/gpu/bench.h"
#include "tests/model/nn/tiny_model.h"

namespace llava::bench {

using nlohmann::json;

json MeasureTower(at::Device device, const Shape& shape, const Limits& limits) {
  const VisionConfig& c = shape.tower;
  const FeatureConfig features;
  const TensorSource tensors = MemoryTensors(RandomTower(c));
  const ClipTower tower(c, tensors, device, at::kBFloat16);
  const auto pixels = [&](int64_t count) {
    return at::randn({count, c.num_channels, c.image_size, c.image_size},
                     at::TensorOptions(device).dtype(at::kFloat));
  };
  json found;
  {
    const ClipTower exact(c, tensors, device, at::kFloat);
    const at::Tensor some = pixels(3);  // no count below: its first batch shall be one
    found["least_cosine_to_float32"] =
        at::cosine_similarity(tower.Features(some, features).to(at::kFloat),
                              exact.Features(some, features), /*dim=*/2)
            .min()
            .item<double>();
  }
  const auto tokens = static_cast<double>(c.num_patches() + 1);
  const auto width = static_cast<double>(c.hidden_size);
  const auto inner = static_cast<double>(c.intermediate_size);
  const auto layers = static_cast<double>(c.num_layers + 1 + features.select_layer);
  const double patch = static_cast<double>(c.num_channels * c.patch_size * c.patch_size);
  const double work = layers * (2 * tokens * (4 * width * width + 2 * width * inner) +
                                4 * tokens * tokens * width) +
                      2 * tokens * width * patch;
  for (const int64_t count : shape.pictures) {
    const at::Tensor batch = pixels(count);
    static_cast<void>(batch.sum().item<float>());
    // What the first batch of this size waits for beside its own computation.
    const auto begin = std::chrono::steady_clock::now();
    static_cast<void>(tower.Features(batch, features).sum().item<float>());
    const std::chrono::duration<double> first = std::chrono::steady_clock::now() - begin;
    const double seconds = Seconds(device, 7, 3, [&](int) { tower.Features(batch, features); });
    const double rate = static_cast<double>(count) / seconds;
    found[std::to_string(count)] = {{"milliseconds", seconds * 1e3},
                                    {"first_milliseconds", first.count() * 1e3},
                                    {"images_per_second", rate},
                                    {"tflop_per_second", rate * work / 1e12},
                                    {"share_of_matmul_peak", rate * work / limits.product}};
  }
  return found;
}

}  // namespace llava::bench
