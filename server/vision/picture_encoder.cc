#include "server/vision/picture_encoder.h"

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/opened_files.h"
#include "model/llava/self_test.h"
#include "model/nn/clip.h"
#include "model/nn/packed_clip.h"
#include "model/ops/cpu/gemm.h"
#include "model/ops/cpu/thread_pool.h"
#include "server/device/device.h"
#include "server/device/load_failure.h"
#include "server/runtime/mutex.h"

namespace llava {
namespace {

// How a tower is computed, from the word of --dtype.
struct Arithmetic {
  at::ScalarType dtype = at::kFloat;
  std::optional<ops::cpu::WeightFormat> packed;  // by own kernels, instead of LibTorch's
  std::string name;                              // "float32", "bfloat16", "float16", "int8"
  std::string numerics;                          // "cpu-f32", "cpu-int8-amx-2"
  double weight_bytes = 4;                       // of one weight
};

// Own kernels round as the instruction set and their present form make them.
std::string PackedNumerics(const char* weights) {
  return absl::StrCat("cpu-", weights, "-", std::string(ops::cpu::Best().name), "-",
                      kPackedClipRevision);
}

absl::StatusOr<Arithmetic> ArithmeticOf(const std::string& word, at::Device device) {
  Arithmetic arithmetic;
  if (word == "int8") {
    if (!device.is_cpu()) {
      return absl::InvalidArgumentError("--dtype int8: towers have it on the cpu only");
    }
    arithmetic.packed = ops::cpu::WeightFormat::kInt8;
    arithmetic.name = "int8";
    arithmetic.numerics = PackedNumerics("int8");
    arithmetic.weight_bytes = 1.0625;  // with the scales of their groups
    return arithmetic;
  }
  arithmetic.dtype = ParseDtype(word, device);
  arithmetic.name = ArithmeticName(arithmetic.dtype);
  arithmetic.numerics = NumericsName(device, arithmetic.dtype);
  arithmetic.weight_bytes = static_cast<double>(c10::elementSize(arithmetic.dtype));
  if (device.is_cpu() && arithmetic.dtype == at::kBFloat16) {
    arithmetic.packed = ops::cpu::WeightFormat::kBFloat16;
    arithmetic.numerics = PackedNumerics("bf16");
  }
  return arithmetic;
}

// [B, 3, S, S] float32 on the host; pinned, so that the copy to a GPU is fast.
at::Tensor StackPixels(std::span<const std::vector<float>> pixels, const VisionConfig& config,
                       bool pinned) {
  const int64_t side = config.image_size, channels = config.num_channels;
  at::Tensor batch = at::empty({static_cast<int64_t>(pixels.size()), channels, side, side},
                               at::TensorOptions().pinned_memory(pinned).dtype(at::kFloat));
  const auto floats = static_cast<size_t>(channels * side * side);
  for (size_t i = 0; i < pixels.size(); ++i) {
    if (pixels[i].size() != floats) {
      throw std::invalid_argument(
          absl::StrCat("picture of ", pixels[i].size(), " values, the tower takes ", floats));
    }
    std::memcpy(batch.data_ptr<float>() + i * floats, pixels[i].data(), floats * sizeof(float));
  }
  return batch;
}

// features [B, rows, Dv], on the host.
std::vector<std::string> SplitRows(const at::Tensor& features) {
  const auto count = static_cast<size_t>(features.size(0));
  const size_t bytes = features.nbytes() / count;
  const auto* data = static_cast<const char*>(features.const_data_ptr());
  std::vector<std::string> parts;
  for (size_t i = 0; i < count; ++i) parts.emplace_back(data + i * bytes, bytes);
  return parts;
}

FeatureConfig Choice(int64_t select_layer, SelectFeature select_feature) {
  FeatureConfig features;
  features.select_layer = select_layer;
  features.select_feature = select_feature;
  return features;
}

// By LibTorch, on any device.
class ClipEncoder : public PictureEncoder {
 public:
  // Throws std::runtime_error if the tower does not see what was published.
  ClipEncoder(std::shared_ptr<const ClipTower> tower, const TowerCheckpoint& checkpoint)
      : memory_(tower->device()), shared_(std::move(tower)), tower_(*shared_) {
    if (checkpoint.self_test) drift_ = CheckSelfTest(tower_, *checkpoint.self_test);
  }

  double self_test_drift() const override { return drift_; }

  std::vector<std::string> Encode(std::span<const std::vector<float>> pixels, int64_t select_layer,
                                  SelectFeature select_feature) override {
    const bool pinned = tower_.device().is_cuda();
    const at::Tensor batch = StackPixels(pixels, tower_.config(), pinned);
    // Numbers are converted on the device.
    const at::Tensor there =
        tower_
            .Features(batch.to(tower_.device(), /*non_blocking=*/true).to(tower_.dtype()),
                      Choice(select_layer, select_feature))
            .to(at::kBFloat16);
    const at::Tensor result =
        at::empty(there.sizes(), at::TensorOptions().pinned_memory(pinned).dtype(at::kBFloat16));
    result.copy_(there);
    return SplitRows(result);
  }

 private:
  c10::InferenceMode inference_;  // of the worker's thread, as long as the encoder lives
  const GivesBackMemory memory_;
  const std::shared_ptr<const ClipTower> shared_;
  const ClipTower& tower_;
  double drift_ = -1;
};

// By packed weights and own kernels, on the CPU.
class PackedEncoder : public PictureEncoder {
 public:
  // As ClipEncoder.
  PackedEncoder(std::shared_ptr<const PackedClipWeights> weights,
                std::shared_ptr<ops::cpu::ThreadPool> pool, const TowerCheckpoint& checkpoint)
      : tower_(std::move(weights), std::move(pool)) {
    if (checkpoint.self_test) drift_ = CheckSelfTest(tower_, *checkpoint.self_test);
  }

  double self_test_drift() const override { return drift_; }

  std::vector<std::string> Encode(std::span<const std::vector<float>> pixels, int64_t select_layer,
                                  SelectFeature select_feature) override {
    return SplitRows(tower_
                         .Features(StackPixels(pixels, tower_.config(), /*pinned=*/false),
                                   Choice(select_layer, select_feature))
                         .contiguous());
  }

 private:
  c10::InferenceMode inference_;
  PackedClipTower tower_;
  double drift_ = -1;
};

// What workers hold together: made by the first of them, freed with the last. Thread-safe.
template <typename T>
class SharedByWorkers {
 public:
  // The others wait while `make` runs; what it throws reaches its caller, and the next one tries.
  template <typename Make>
  std::shared_ptr<const T> Get(const Make& make) {
    MutexLock lock(mutex_);
    auto held = held_.lock();
    if (!held) held_ = held = make();
    return held;
  }

 private:
  Mutex mutex_;
  std::weak_ptr<const T> held_ LLAVA_GUARDED_BY(mutex_);
};

// Makes the encoders of all workers. Those of a device share its weights. Thread-safe.
class EncoderMaker {
 public:
  EncoderMaker(std::shared_ptr<const TowerCheckpoint> checkpoint, OpenedFiles files,
               std::vector<at::Device> devices, Arithmetic arithmetic, int workers, int threads,
               uint64_t weight_bytes)
      : checkpoint_(std::move(checkpoint)),
        files_(std::move(files)),
        devices_(std::move(devices)),
        arithmetic_(std::move(arithmetic)),
        workers_(workers),
        threads_(threads),
        weight_bytes_(weight_bytes),
        towers_(devices_.size()) {}

  std::unique_ptr<PictureEncoder> Make(int worker) {
    const size_t index = static_cast<size_t>(worker) % devices_.size();
    const at::Device device = devices_[index];
    RequireDevice(device);
    const int threads = EnterDeviceThread(device, threads_, workers_, weight_bytes_);
    if (arithmetic_.packed) {
      auto pool = std::make_shared<ops::cpu::ThreadPool>(threads);
      auto weights = packed_.Get([&] {
        files_.Check();
        return std::make_shared<const PackedClipWeights>(checkpoint_->config, checkpoint_->tensors,
                                                         *arithmetic_.packed, *pool);
      });
      return std::make_unique<PackedEncoder>(std::move(weights), std::move(pool), *checkpoint_);
    }
    try {
      auto tower = towers_[index].Get([&] {
        files_.Check();
        const c10::InferenceMode inference;
        auto made = std::make_shared<const ClipTower>(checkpoint_->config, checkpoint_->tensors,
                                                      device, arithmetic_.dtype);
        // Another worker will read it on a stream of its own.
        if (device.is_cuda()) {
          c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
        }
        return made;
      });
      return std::make_unique<ClipEncoder>(std::move(tower), *checkpoint_);
    } catch (...) {
      GiveBackMemory(device);  // of what was read so far
      throw;
    }
  }

 private:
  const std::shared_ptr<const TowerCheckpoint> checkpoint_;
  const OpenedFiles files_;
  const std::vector<at::Device> devices_;
  const Arithmetic arithmetic_;
  const int workers_, threads_;
  const uint64_t weight_bytes_;
  SharedByWorkers<PackedClipWeights> packed_;
  std::vector<SharedByWorkers<ClipTower>> towers_;  // of each device
};

absl::StatusOr<TowerCheckpoint> OpenChecked(const std::string& path, const OpenOptions& options) {
  try {
    return OpenTower(path, options);
  } catch (...) {
    return WhyNotOpened(path, std::current_exception());
  }
}

uint64_t WeightBytes(const TowerCheckpoint& checkpoint, const Arithmetic& arithmetic) {
  return static_cast<uint64_t>(static_cast<double>(checkpoint.tensors.numel()) *
                               arithmetic.weight_bytes);
}

}  // namespace

absl::StatusOr<uint64_t> EstimateTowerBytes(const TowerOptions& options, int workers,
                                            int max_batch) {
  auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
  OpenOptions unverified;
  unverified.verify = false;
  auto checkpoint = OpenChecked(options.model, unverified);
  if (!checkpoint.ok()) return checkpoint.status();
  const auto arithmetic = ArithmeticOf(options.dtype, devices->front());
  if (!arithmetic.ok()) return arithmetic.status();
  const VisionConfig& config = checkpoint->config;
  // A block's widest moment: its input, q, k, v and output beside the widened rows.
  const auto row = static_cast<uint64_t>(6 * config.hidden_size + 2 * config.intermediate_size);
  const auto rows = static_cast<uint64_t>(max_batch * (config.num_patches() + 1));
  const auto copies = std::min<uint64_t>(static_cast<uint64_t>(workers), devices->size());
  return copies * WeightBytes(*checkpoint, *arithmetic) +
         static_cast<uint64_t>(workers) * rows * row * sizeof(float);
}

absl::StatusOr<LoadedTower> OpenTowerWorkers(const TowerOptions& options,
                                             const TowerReading& reading) {
  auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
  for (const at::Device device : *devices) {
    if (auto status = CheckDevice(device); !status.ok()) return status;
  }
  const auto arithmetic = ArithmeticOf(options.dtype, devices->front());
  if (!arithmetic.ok()) return arithmetic.status();
  OpenOptions open;
  open.progress = reading.progress;
  open.stop = reading.stop;
  open.bytes_per_second = static_cast<double>(reading.bytes_per_second);
  OpenedFiles files(options.model);
  auto opened = OpenChecked(options.model, open);
  if (!opened.ok()) return opened.status();
  const auto checkpoint = std::make_shared<const TowerCheckpoint>(*std::move(opened));

  const int workers = static_cast<int>(devices->size()) * options.workers;
  LoadedTower loaded;
  TowerInfo& info = loaded.info;
  info.digest = checkpoint->digest;
  info.num_layers = checkpoint->config.num_layers;
  info.num_patches = checkpoint->config.num_patches();
  info.width = checkpoint->config.hidden_size;
  info.preprocess = checkpoint->config.preprocess;
  info.device = options.device;
  info.dtype = arithmetic->name;
  info.numerics = arithmetic->numerics;
  info.workers = workers;
  info.weight_bytes = WeightBytes(*checkpoint, *arithmetic);
  info.devices = static_cast<int>(devices->size());
  const auto maker =
      std::make_shared<EncoderMaker>(checkpoint, std::move(files), *std::move(devices), *arithmetic,
                                     workers, options.threads, info.weight_bytes);
  loaded.factory = [maker](int worker) { return maker->Make(worker); };
  return loaded;
}

}  // namespace llava
