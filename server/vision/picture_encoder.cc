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
#include <stdexcept>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/checkpoint.h"
#include "model/llava/self_test.h"
#include "model/nn/clip.h"
#include "server/device/device.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

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
    const int64_t side = tower_.config().image_size, channels = tower_.config().num_channels;
    // Pinned, so that the copies to and from a GPU are fast; numbers are converted there.
    const auto host = at::TensorOptions().pinned_memory(tower_.device().is_cuda());
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
    FeatureConfig features;
    features.select_layer = select_layer;
    features.select_feature = select_feature;
    const at::Tensor there =
        tower_
            .Features(batch.to(tower_.device(), /*non_blocking=*/true).to(tower_.dtype()), features)
            .to(at::kBFloat16);
    const at::Tensor result = at::empty(there.sizes(), host.dtype(at::kBFloat16));
    result.copy_(there);
    const size_t bytes = result.nbytes() / pixels.size();
    const auto* data = static_cast<const char*>(result.const_data_ptr());
    std::vector<std::string> parts;
    for (size_t i = 0; i < pixels.size(); ++i) parts.emplace_back(data + i * bytes, bytes);
    return parts;
  }

 private:
  c10::InferenceMode inference_;  // of the worker's thread, as long as the encoder lives
  ClipTower tower_;
  double drift_ = -1;
};

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

uint64_t WeightBytes(const TowerCheckpoint& checkpoint, at::ScalarType dtype) {
  uint64_t elements = 0;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    uint64_t own = 1;
    for (const int64_t side : tensor.shape) own *= static_cast<uint64_t>(side);
    elements += own;
  }
  return elements * c10::elementSize(dtype);
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
  const at::ScalarType dtype = ParseDtype(options.dtype, devices->front());
  const VisionConfig& config = checkpoint->config;
  // A block's widest moment: its input, q, k, v and output beside the widened rows.
  const auto row = static_cast<uint64_t>(6 * config.hidden_size + 2 * config.intermediate_size);
  const auto rows = static_cast<uint64_t>(max_batch * (config.num_patches() + 1));
  return static_cast<uint64_t>(workers) *
         (WeightBytes(*checkpoint, dtype) + rows * row * c10::elementSize(dtype));
}

absl::StatusOr<LoadedTower> OpenTowerWorkers(const TowerOptions& options,
                                             const TowerReading& reading) {
  auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
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

  const at::ScalarType dtype = ParseDtype(options.dtype, devices->front());
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
  info.dtype = ArithmeticName(dtype);
  info.numerics = NumericsName(devices->front(), dtype);
  info.workers = workers;
  const uint64_t weight_bytes = WeightBytes(*checkpoint, dtype);
  info.weight_bytes = weight_bytes * static_cast<uint64_t>(workers);
  loaded.factory = [checkpoint, devices = *std::move(devices), dtype, workers, weight_bytes,
                    threads = options.threads](int worker) -> std::unique_ptr<PictureEncoder> {
    const at::Device device = devices[static_cast<size_t>(worker) % devices.size()];
    EnterDeviceThread(device, threads, workers, weight_bytes);
    return std::make_unique<ClipEncoder>(*checkpoint, device, dtype);
  };
  return loaded;
}

}  // namespace llava
