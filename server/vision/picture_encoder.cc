#include "server/vision/picture_encoder.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include <cstring>
#include <exception>
#include <stdexcept>

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
  ClipEncoder(const TowerCheckpoint& checkpoint, at::Device device, at::ScalarType dtype)
      : tower_(checkpoint.config, checkpoint.tensors, device, dtype) {}

  // Throws std::runtime_error if the tower does not see what was published.
  void CheckSelfTest(const SelfTest& test) const { llava::CheckSelfTest(tower_, test); }

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
};

}  // namespace

absl::StatusOr<LoadedTower> OpenTowerWorkers(const TowerOptions& options) {
  auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
  for (const at::Device device : *devices) {
    if (auto status = CheckDevice(device); !status.ok()) return status;
  }
  std::shared_ptr<const TowerCheckpoint> checkpoint;
  try {
    checkpoint = std::make_shared<TowerCheckpoint>(OpenTower(options.model));
  } catch (const std::exception& error) {
    return absl::NotFoundError(error.what());
  }

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
  for (const auto& [name, tensor] : checkpoint->tensors.tensors()) {
    uint64_t bytes = c10::elementSize(dtype) * static_cast<uint64_t>(workers);
    for (const int64_t side : tensor.shape) bytes *= static_cast<uint64_t>(side);
    info.weight_bytes += bytes;
  }
  const uint64_t weight_bytes = info.weight_bytes / static_cast<uint64_t>(workers);
  loaded.factory = [checkpoint, devices = *std::move(devices), dtype, workers, weight_bytes,
                    threads = options.threads](int worker) -> std::unique_ptr<PictureEncoder> {
    const at::Device device = devices[static_cast<size_t>(worker) % devices.size()];
    EnterDeviceThread(device, threads, workers, weight_bytes);
    auto encoder = std::make_unique<ClipEncoder>(*checkpoint, device, dtype);
    if (checkpoint->self_test) encoder->CheckSelfTest(*checkpoint->self_test);
    return encoder;
  };
  return loaded;
}

}  // namespace llava
