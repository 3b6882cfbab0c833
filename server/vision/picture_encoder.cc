#include "server/vision/picture_encoder.h"

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <new>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/checkpoint.h"
#include "model/llava/self_test.h"
#include "model/nn/clip.h"
#include "model/nn/packed_clip.h"
#include "server/device/device.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// float32 [B, 3, S, S]; throws std::invalid_argument if a picture has another size.
at::Tensor BatchOf(std::span<const std::vector<float>> pixels, const VisionConfig& config,
                   const at::TensorOptions& host) {
  const int64_t side = config.image_size, channels = config.num_channels;
  const at::Tensor batch = at::empty({static_cast<int64_t>(pixels.size()), channels, side, side},
                                     host.dtype(at::kFloat));
  const size_t floats = static_cast<size_t>(channels * side * side);
  for (size_t i = 0; i < pixels.size(); ++i) {
    if (pixels[i].size() != floats) {
      throw std::invalid_argument(
          absl::StrCat("picture of ", pixels[i].size(), " values, the tower takes ", floats));
    }
    std::memcpy(batch.data_ptr<float>() + i * floats, pixels[i].data(), floats * sizeof(float));
  }
  return batch;
}

// Of each picture of a contiguous batch.
std::vector<std::string> BytesOf(const at::Tensor& features) {
  const auto count = static_cast<size_t>(features.size(0));
  const size_t bytes = features.nbytes() / count;
  const auto* data = static_cast<const char*>(features.const_data_ptr());
  std::vector<std::string> parts;
  for (size_t i = 0; i < count; ++i) parts.emplace_back(data + i * bytes, bytes);
  return parts;
}

FeatureConfig FeaturesOf(int64_t select_layer, SelectFeature select_feature) {
  FeatureConfig features;
  features.select_layer = select_layer;
  features.select_feature = select_feature;
  return features;
}

// By LibTorch, on any device.
class ClipEncoder : public PictureEncoder {
 public:
  // Throws std::runtime_error if the tower does not see what was published.
  ClipEncoder(const TowerCheckpoint& checkpoint, at::Device device, at::ScalarType dtype)
      : tower_(checkpoint.config, checkpoint.tensors, device, dtype) {
    if (checkpoint.self_test) drift_ = CheckSelfTest(tower_, *checkpoint.self_test);
  }

  double self_test_drift() const override { return drift_; }

  std::vector<std::string> Encode(std::span<const std::vector<float>> pixels, int64_t select_layer,
                                  SelectFeature select_feature) override {
    // Pinned, so that the copies to and from a GPU are fast; numbers are converted there.
    const auto host = at::TensorOptions().pinned_memory(tower_.device().is_cuda());
    const at::Tensor batch = BatchOf(pixels, tower_.config(), host);
    const at::Tensor there =
        tower_
            .Features(batch.to(tower_.device(), /*non_blocking=*/true).to(tower_.dtype()),
                      FeaturesOf(select_layer, select_feature))
            .to(at::kBFloat16);
    const at::Tensor result = at::empty(there.sizes(), host.dtype(at::kBFloat16));
    result.copy_(there);
    return BytesOf(result);
  }

 private:
  c10::InferenceMode inference_;  // of the worker's thread, as long as the encoder lives
  ClipTower tower_;
  double drift_ = -1;
};

// By our own kernels, on the CPU.
class PackedEncoder : public PictureEncoder {
 public:
  // As above.
  PackedEncoder(const TowerCheckpoint& checkpoint, ops::cpu::WeightFormat format, int threads)
      : tower_(checkpoint.config, checkpoint.tensors, format,
               std::make_shared<ops::cpu::ThreadPool>(threads)) {
    if (checkpoint.self_test) drift_ = CheckSelfTest(tower_, *checkpoint.self_test);
  }

  double self_test_drift() const override { return drift_; }

  std::vector<std::string> Encode(std::span<const std::vector<float>> pixels, int64_t select_layer,
                                  SelectFeature select_feature) override {
    return BytesOf(tower_.Features(BatchOf(pixels, tower_.config(), {}),
                                   FeaturesOf(select_layer, select_feature)));
  }

 private:
  c10::InferenceMode inference_;
  PackedClipTower tower_;
  double drift_ = -1;
};

// What --dtype means on a device.
struct Arithmetic {
  at::ScalarType dtype = at::kFloat;
  std::optional<ops::cpu::WeightFormat> packed = {};  // our own kernels
  uint64_t weight_bytes = 4;                          // of one
  std::string name, numerics;
};

absl::StatusOr<Arithmetic> ArithmeticOf(const std::string& word, at::Device device) {
  if (word == "int8") {
    if (!device.is_cpu()) {
      return absl::InvalidArgumentError("a tower in int8 runs on the CPU only, not on " +
                                        device.str());
    }
    return Arithmetic{at::kFloat, ops::cpu::WeightFormat::kInt8, 1, "int8", "cpu-int8"};
  }
  Arithmetic result;
  result.dtype = ParseDtype(word, device);
  if (device.is_cpu() && result.dtype == at::kBFloat16) {
    result.packed = ops::cpu::WeightFormat::kBFloat16;
  }
  result.weight_bytes = c10::elementSize(result.dtype);
  result.name = ArithmeticName(result.dtype);
  result.numerics = NumericsName(device, result.dtype);
  return result;
}

absl::Status Classify(const std::string& path, const std::string& why) {
  std::error_code error;
  const bool there = std::filesystem::exists(path, error);
  if (error == std::errc::permission_denied) return absl::PermissionDeniedError(why);
  if (!there || std::filesystem::is_empty(path, error)) return absl::NotFoundError(why);
  if (access(path.c_str(), R_OK) != 0 && errno == EACCES) {
    return absl::PermissionDeniedError(why);
  }
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end;
       it.increment(error)) {
    if (access(it->path().c_str(), R_OK) != 0 && errno == EACCES) {
      return absl::PermissionDeniedError(why);
    }
  }
  return absl::InvalidArgumentError(why);
}

absl::StatusOr<TowerCheckpoint> OpenChecked(const std::string& path, const OpenOptions& options) {
  try {
    return OpenTower(path, options);
  } catch (const OpenStopped&) {
    return absl::CancelledError("told to stop while opening " + path);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory while opening " + path);
  } catch (const std::exception& error) {
    return Classify(path, error.what());
  }
}

uint64_t WeightBytes(const TowerCheckpoint& checkpoint, uint64_t each) {
  uint64_t elements = 0;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    uint64_t own = 1;
    for (const int64_t side : tensor.shape) own *= static_cast<uint64_t>(side);
    elements += own;
  }
  return elements * each;
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
  return static_cast<uint64_t>(workers) * (WeightBytes(*checkpoint, arithmetic->weight_bytes) +
                                           rows * row * c10::elementSize(arithmetic->dtype));
}

absl::StatusOr<LoadedTower> OpenTowerWorkers(const TowerOptions& options,
                                             const TowerReading& reading) {
  auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
  const auto arithmetic = ArithmeticOf(options.dtype, devices->front());
  if (!arithmetic.ok()) return arithmetic.status();
  for (const at::Device device : *devices) {
    if (auto status = CheckDevice(device); !status.ok()) return status;
  }
  OpenOptions open;
  open.progress = reading.progress;
  open.stop = reading.stop;
  open.bytes_per_second = static_cast<double>(reading.bytes_per_second);
  auto opened = OpenChecked(options.model, open);
  if (!opened.ok()) return opened.status();
  const auto checkpoint = std::make_shared<const TowerCheckpoint>(*std::move(opened));

  const int workers = static_cast<int>(devices->size()) * options.workers;
  LoadedTower loaded;
  TowerInfo& info = loaded.info;
  info.name = checkpoint->name;
  info.version = checkpoint->version;
  info.digest = checkpoint->digest;
  info.num_layers = checkpoint->config.num_layers;
  info.num_patches = checkpoint->config.num_patches();
  info.width = checkpoint->config.hidden_size;
  info.preprocess = checkpoint->config.preprocess;
  info.device = options.device;
  info.dtype = arithmetic->name;
  info.numerics = arithmetic->numerics;
  info.workers = workers;
  const uint64_t weight_bytes = WeightBytes(*checkpoint, arithmetic->weight_bytes);
  info.weight_bytes = weight_bytes * static_cast<uint64_t>(workers);
  loaded.factory = [checkpoint, devices = *std::move(devices), arithmetic = *arithmetic, workers,
                    weight_bytes,
                    threads = options.threads](int worker) -> std::unique_ptr<PictureEncoder> {
    const at::Device device = devices[static_cast<size_t>(worker) % devices.size()];
    const int own = EnterDeviceThread(device, threads, workers, weight_bytes);
    if (arithmetic.packed) {
      return std::make_unique<PackedEncoder>(*checkpoint, *arithmetic.packed, own);
    }
    return std::make_unique<ClipEncoder>(*checkpoint, device, arithmetic.dtype);
  };
  return loaded;
}

}  // namespace llava
