// llava-model bench --vision: the speed of a tower as the vision service runs it.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/random_tensors.h"
#include "model/checkpoint/tensor_names.h"
#include "model/nn/clip.h"
#include "model/nn/packed_clip.h"
#include "model/tools/commands.h"
#include "model/tools/common.h"
#include "model/tools/shapes.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;
using ops::cpu::WeightFormat;

// Of all threads of this process.
double ProcessorSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Operations of products and attention for one picture.
double Operations(const VisionConfig& config, int64_t num_blocks) {
  const auto width = static_cast<double>(config.hidden_size);
  const auto inner = static_cast<double>(config.intermediate_size);
  const auto patches = static_cast<double>(config.num_patches()), tokens = patches + 1;
  const auto depth =
      static_cast<double>(config.num_channels * config.patch_size * config.patch_size);
  const double block =
      2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width;
  return static_cast<double>(num_blocks) * block + 2 * patches * depth * width;
}

// Whatever the arithmetic, pixels [B, 3, S, S] in and features out.
using Encoder = std::function<at::Tensor(const at::Tensor&)>;

json Measure(const Encoder& encode, const VisionConfig& config, int64_t batch, int repeats,
             const at::Generator& generator, double operations) {
  const int64_t side = config.image_size;
  const at::Tensor pixels = at::randn({batch, config.num_channels, side, side}, generator);
  encode(pixels);
  std::vector<double> seconds, processor;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = Clock::now();
    const double used = ProcessorSeconds();
    encode(pixels);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    processor.push_back(ProcessorSeconds() - used);
  }
  const auto pictures = static_cast<double>(batch);
  const double median = Median(seconds) / pictures;
  return {
      {"batch", batch},
      {"ms_per_picture", median * 1e3},
      {"best_ms_per_picture", *std::min_element(seconds.begin(), seconds.end()) / pictures * 1e3},
      {"processor_ms_per_picture", Median(processor) / pictures * 1e3},
      {"gflop_per_s", operations / median / 1e9}};
}

}  // namespace

void RunVisionBench(const VisionBenchCommand& command) {
  const c10::InferenceMode guard;
  const int threads = ThreadsOr(command.threads);
  at::set_num_threads(threads);
  if (command.dtype != "float32" && command.dtype != "bf16" && command.dtype != "int8") {
    throw std::invalid_argument("a tower runs in float32, bfloat16 or int8, not in " +
                                command.dtype);
  }
  TowerCheckpoint tower;
  const std::vector<std::string> names = VisionShapeNames();
  if (std::find(names.begin(), names.end(), command.model) != names.end()) {
    tower.config = VisionShape(command.model);
    RandomTensorOptions random;
    random.seed = command.seed;
    random.outliers = command.outliers;
    tower.tensors = RandomTensors(TowerTensors(tower.config), random);
  } else {
    tower = OpenTower(command.model);
  }
  const VisionConfig& config = tower.config;
  const FeatureConfig features;  // the second last hidden state, without the class token
  const int64_t num_blocks = config.num_layers + 1 + features.select_layer;
  if (num_blocks < 0) throw std::invalid_argument("the tower has no second last hidden state");
  const auto plain = [&] { return ClipTower(config, tower.tensors, at::kCPU, at::kFloat); };

  const double operations = Operations(config, num_blocks);
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(command.seed);
  json result = {{"model", command.model},
                 {"dtype", command.dtype},
                 {"threads", threads},
                 {"blocks", num_blocks},
                 {"gflop_per_picture", operations / 1e9}};
  std::optional<ClipTower> float_tower;
  std::optional<PackedClipTower> packed;
  Encoder encode;
  if (command.dtype == "float32") {
    float_tower.emplace(plain());
    encode = [&](const at::Tensor& pixels) { return float_tower->Features(pixels, features); };
  } else {
    const auto pool = std::make_shared<ops::cpu::ThreadPool>(threads);
    packed.emplace(
        std::make_shared<PackedClipWeights>(
            config, tower.tensors,
            command.dtype == "int8" ? WeightFormat::kInt8 : WeightFormat::kBFloat16, *pool),
        pool);
    encode = [&](const at::Tensor& pixels) { return packed->Features(pixels, features); };
    result["instruction_set"] = std::string(ops::cpu::Best().name);
    result["weight_bytes"] = packed->weights().bytes();
  }
  result["pictures"] = json::array();
  for (const int64_t batch : command.batch) {
    result["pictures"].push_back(
        Measure(encode, config, batch, command.repeats, generator, operations));
  }
  if (packed) {
    const at::Tensor pixels =
        at::randn({1, config.num_channels, config.image_size, config.image_size}, generator);
    const at::Tensor expected = plain().Features(pixels, features);
    const at::Tensor cosines =
        at::cosine_similarity(encode(pixels).to(at::kDouble), expected.to(at::kDouble), -1);
    result["cosine_to_float32"] = {{"min", cosines.min().item<double>()},
                                   {"mean", cosines.mean().item<double>()}};
  }
  if (command.json) {
    std::cout << result.dump(1) << "\n";
    return;
  }
  std::printf("%s in %s on %d threads, %lld blocks, %.0f GFLOP a picture\n", command.model.c_str(),
              command.dtype.c_str(), threads, static_cast<long long>(num_blocks), operations / 1e9);
  for (const json& row : result["pictures"]) {
    std::printf("%3lld pictures: %7.1f ms each (best %.1f, processors %.1f), %.0f GFLOP/s\n",
                row["batch"].get<long long>(), row["ms_per_picture"].get<double>(),
                row["best_ms_per_picture"].get<double>(),
                row["processor_ms_per_picture"].get<double>(), row["gflop_per_s"].get<double>());
  }
  if (packed) {
    std::printf("cosine of a row to float32: mean %.5f, smallest %.5f\n",
                result["cosine_to_float32"]["mean"].get<double>(),
                result["cosine_to_float32"]["min"].get<double>());
  }
}

}  // namespace llava
