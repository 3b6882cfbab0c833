// llava-model bench --load: the loading of a language model.
#include <sys/resource.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/llava/serving_model.h"
#include "model/tools/commands.h"
#include "model/tools/common.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

uint64_t PeakBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace

void RunLoadBench(const BenchCommand& command) {
  const c10::InferenceMode guard;
  const int threads = ThreadsOr(command.threads);
  at::set_num_threads(threads);
  uint64_t file_bytes = 0;
  const CheckpointFolder folder = OpenCheckpointFolder(command.model, /*verify=*/false);
  if (!folder.manifest) {
    throw std::invalid_argument(folder.path.string() + ": is no version of a model repository");
  }
  for (const auto& [name, file] : folder.manifest->files) file_bytes += file.size_bytes;
  const uint64_t before = PeakBytes();
  const auto begin = Clock::now();
  OpenOptions open;
  open.packed = true;
  open.in_memory = true;
  open.threads = threads;
  const LanguageCheckpoint checkpoint = OpenLanguage(folder.path, open);
  ServingOptions options;
  options.threads = threads;
  options.kv_bytes =
      static_cast<uint64_t>(ServingModel::KvBlockBytes(checkpoint, at::kCPU, options));
  const ServingModel model(checkpoint, at::kCPU, options);
  const double loaded = SecondsSince(begin);
  const uint64_t peak = PeakBytes() - before;
  const auto weights = static_cast<uint64_t>(model.decoder().weight_bytes());
  const double speed = static_cast<double>(file_bytes) / loaded;
  if (command.json) {
    const nlohmann::json result = {
        {"path", folder.path.string()}, {"weights", ToString(model.weights())},
        {"threads", threads},           {"file_bytes", file_bytes},
        {"weight_bytes", weights},      {"loaded_s", loaded},
        {"bytes_per_s", speed},         {"peak_bytes", peak}};
    std::cout << result.dump(1) << "\n";
    return;
  }
  std::printf(
      "%s: %.2f GB of files checked and served as %s after %.2f s (%.2f GB/s); peak %.2f GB for "
      "%.2f GB of weights\n",
      folder.path.c_str(), static_cast<double>(file_bytes) / 1e9, ToString(model.weights()).c_str(),
      loaded, speed / 1e9, static_cast<double>(peak) / 1e9, static_cast<double>(weights) / 1e9);
}

}  // namespace llava
