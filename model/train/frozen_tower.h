#pragma once

// Features of picture files by a tower that is not trained, kept for later epochs.

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/picture_shape.h"
#include "model/llava/tower_features.h"
#include "model/nn/clip.h"
#include "model/train/feature_file.h"

namespace llava {

struct FrozenTowerOptions {
  FeatureConfig features = {};
  // That compute, each for some of the threads that ask; none: the CPU. Features are kept there.
  std::vector<at::Device> devices = {};
  at::ScalarType dtype = at::kFloat;
  int64_t memory_bytes = 0;  // of features kept in memory; what comes later is not kept
  std::filesystem::path cache_file = {};  // empty: none
};

// Computes each picture by itself and on one thread, so that its features depend on nothing but its
// bytes: not on a batch, not on what is cached. Thread-safe.
class FrozenTower {
 public:
  FrozenTower(const TowerCheckpoint& checkpoint, const FrozenTowerOptions& options);

  // Z_v on the CPU, [PictureShape::NumRows, Dv], without a graph. Throws std::invalid_argument
  // saying what is wrong with the picture, std::runtime_error if the file cannot be read.
  PictureFeatures Features(const std::filesystem::path& picture) const;

  struct Counts {
    int64_t computed = 0, from_memory = 0, from_file = 0;
  };
  Counts counts() const;

 private:
  at::Tensor Compute(const std::string& file) const;
  // Nothing unless all of its tiles are there.
  std::optional<at::Tensor> FindInFile(const Sha256Digest& picture, Resolution size) const;
  void AddToFile(const Sha256Digest& picture, const at::Tensor& features) const;
  void Keep(const std::string& name, const at::Tensor& features) const;

  struct OnDevice {
    // Its own: a picture waits for nothing that the trainer has its device do, nor is it waited
    // for. One for all threads, as LibTorch keeps work space for each.
    c10::Stream stream;
    std::unique_ptr<ClipTower> tower;  // made on that stream, too
  };

  FrozenTowerOptions options_;
  std::vector<OnDevice> towers_;
  PictureShape shape_;
  std::unique_ptr<FeatureFile> file_;
  mutable std::atomic<int64_t> computed_ = 0, from_memory_ = 0, from_file_ = 0;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::unordered_map<std::string, at::Tensor> kept_;
  mutable int64_t kept_bytes_ = 0;
};

}  // namespace llava
