#pragma once

// The tower as a worker of the engine sees it. No LibTorch here.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config/model_config.h"
#include "model/digest/sha256.h"

namespace llava {

// Owned and used by one thread.
class PictureEncoder {
 public:
  virtual ~PictureEncoder() = default;
  // pixels: per picture [3, S, S]. Returns per picture bfloat16 [rows, Dv], row-major. Throws
  // std::invalid_argument for a layer out of range, and what LibTorch throws.
  virtual std::vector<std::string> Encode(std::span<const std::vector<float>> pixels,
                                          int64_t select_layer, SelectFeature select_feature) = 0;
  // What the version's self-test found when this was made; negative: it has none.
  virtual double self_test_drift() const { return -1; }
};

// Makes the encoder of worker `worker` on that worker's own thread. May throw; LoadFailure with
// FAILED_PRECONDITION: its device is of no use to this process.
using EncoderFactory = std::function<std::unique_ptr<PictureEncoder>(int worker)>;

// What there is to know about a loaded tower.
struct TowerInfo {
  Sha256Digest digest{};
  int64_t num_layers = 0;
  int64_t num_patches = 0;
  int64_t width = 0;  // Dv
  PreprocessConfig preprocess;
  std::string device;         // as given, e.g. "cuda:0,cuda:1"
  std::string dtype;          // "float32", "int8"
  std::string numerics;       // "cpu-f32", "cpu-int8-amx-2"
  uint64_t weight_bytes = 0;  // on each device, shared by its workers
  int devices = 1;
  int workers = 1;  // of all devices

  int64_t Rows(SelectFeature feature) const {
    return num_patches + (feature == SelectFeature::kClsPatch ? 1 : 0);
  }
};

struct LoadedTower {
  TowerInfo info;
  EncoderFactory factory;
};

struct TowerOptions {
  std::string model = {};      // path
  std::string device = "cpu";  // one worker group for each
  std::string dtype = "auto";
  int workers = 1;  // per device
  int threads = 0;  // of each worker's operations, 0 = cores / workers
};

// How reading goes on; see ServableLoader::LoadOptions.
struct TowerReading {
  std::function<void(double)> progress = {};
  std::function<bool()> stop = {};
  uint64_t bytes_per_second = 0;
};

// Reads the checkpoint `options.model`, files verified. Errors of WhyNotOpened, or
// FAILED_PRECONDITION: no such device.
absl::StatusOr<LoadedTower> OpenTowerWorkers(const TowerOptions& options,
                                             const TowerReading& reading = {});

// What `workers` workers of the tower at `options.model` take: weights and the activations of a
// batch of `max_batch`. Reads configuration and headers only. Errors as above.
absl::StatusOr<uint64_t> EstimateTowerBytes(const TowerOptions& options, int workers,
                                            int max_batch);

}  // namespace llava
