#include "model/train/frozen_tower.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <c10/core/DeviceGuard.h>

#include "model/image/decode.h"
#include "model/image/image.h"

namespace llava {
namespace {

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file) {
    throw std::runtime_error(path.string() + ": cannot read: " + std::strerror(errno));
  }
  return bytes;
}

Image Decode(const std::string& file) {
  return DecodeImage({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
}

std::string OriginOf(const TowerCheckpoint& checkpoint, const FrozenTowerOptions& options) {
  const FeatureConfig& features = options.features;
  return "tower " + ToHex(checkpoint.digest) + " layer " + std::to_string(features.select_layer) +
         (features.select_feature == SelectFeature::kPatch ? " patch" : " cls_patch") +
         (features.image_mode == ImageMode::kPad ? " pad" : " crop") +
         (options.device.is_cpu() ? ""
                                  : std::string(1, ' ') + c10::DeviceTypeName(options.device.type(),
                                                                              /*lower_case=*/true));
}

// Kernels of this thread run on it alone.
class OneThread {
 public:
  OneThread() : before_(at::get_num_threads()) {
    if (before_ != 1) at::set_num_threads(1);
  }
  ~OneThread() {
    if (before_ != 1) at::set_num_threads(before_);
  }

 private:
  int before_;
};

}  // namespace

FrozenTower::FrozenTower(const TowerCheckpoint& checkpoint, const FrozenTowerOptions& options)
    : options_(options),
      tower_(checkpoint.config, checkpoint.tensors, options.device, options.dtype) {
  if (options.cache_file.empty()) return;
  const int64_t rows = checkpoint.config.num_patches() +
                       (options.features.select_feature == SelectFeature::kClsPatch ? 1 : 0);
  file_ = std::make_unique<FeatureFile>(options.cache_file, OriginOf(checkpoint, options),
                                        at::IntArrayRef{rows, checkpoint.config.hidden_size},
                                        options.dtype);
}

void FrozenTower::CheckPicture(const std::filesystem::path& picture) { Decode(ReadFile(picture)); }

at::Tensor FrozenTower::Features(const std::filesystem::path& picture) const {
  const std::string bytes = ReadFile(picture);
  if (options_.memory_bytes == 0 && !file_) return Compute(bytes);
  const Sha256Digest digest = HashBytes(bytes);
  const std::string name = ToBytes(digest);
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = kept_.find(name); found != kept_.end()) {
      ++from_memory_;
      return found->second;
    }
  }
  if (file_) {
    if (const auto found = file_->Find(digest)) {
      ++from_file_;
      Keep(name, *found);
      return *found;
    }
  }
  const at::Tensor features = Compute(bytes);
  if (file_) file_->Add(digest, features);
  Keep(name, features);
  return features;
}

at::Tensor FrozenTower::Compute(const std::string& file) const {
  const PreprocessConfig& preprocess = tower_.config().preprocess;
  const Image fitted = FitToTower(Decode(file), options_.features.image_mode, preprocess);
  const at::NoGradGuard no_graph;
  const OneThread one;
  const c10::DeviceGuard device(options_.device);
  const at::Tensor pixels = at::tensor(NormalizePixels(fitted, preprocess), at::kFloat)
                                .view({1, 3, preprocess.image_size, preprocess.image_size})
                                .to(options_.dtype);
  ++computed_;
  return tower_.Features(pixels, options_.features).squeeze(0).cpu().contiguous();
}

void FrozenTower::Keep(const std::string& name, const at::Tensor& features) const {
  const auto bytes = static_cast<int64_t>(features.nbytes());
  const std::lock_guard lock(mutex_);
  if (kept_bytes_ + bytes > options_.memory_bytes) return;
  if (kept_.emplace(name, features).second) kept_bytes_ += bytes;
}

FrozenTower::Counts FrozenTower::counts() const { return {computed_, from_memory_, from_file_}; }

}  // namespace llava
