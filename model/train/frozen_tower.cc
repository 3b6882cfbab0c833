#include "model/train/frozen_tower.h"

#include <span>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "model/image/decode.h"
#include "model/train/picture_sizes.h"

namespace llava {
namespace {

std::span<const uint8_t> BytesOf(const std::string& file) {
  return {reinterpret_cast<const uint8_t*>(file.data()), file.size()};
}

// The overview, or all there is, by the name of its picture.
Sha256Digest NameOfTile(const Sha256Digest& picture, int64_t tile) {
  return tile == 0 ? picture : HashBytes(ToBytes(picture) + " tile " + std::to_string(tile));
}

std::string ModeOf(const FeatureConfig& features) {
  if (features.image_mode != ImageMode::kAnyres) {
    return features.image_mode == ImageMode::kPad ? " pad" : " crop";
  }
  std::string mode = " anyres";
  for (const Resolution& canvas : features.grid) {
    mode.append(" ").append(std::to_string(canvas.width)).append("x");
    mode += std::to_string(canvas.height);
  }
  return mode;
}

std::string OriginOf(const TowerCheckpoint& checkpoint, const FrozenTowerOptions& options) {
  const FeatureConfig& features = options.features;
  const bool cpu = options.devices.empty() || options.devices.front().is_cpu();
  return "tower " + ToHex(checkpoint.digest) + " layer " + std::to_string(features.select_layer) +
         (features.select_feature == SelectFeature::kPatch ? " patch" : " cls_patch") +
         ModeOf(features) +
         (cpu ? ""
              : ' ' + c10::DeviceTypeName(options.devices.front().type(), /*lower_case=*/true));
}

// One beside the stream of everything else. The trainer waits for what is computed there.
c10::Stream OwnStream(at::Device device) {
  if (device.is_cpu()) return c10::Stream(c10::Stream::DEFAULT, device);
  return c10::impl::VirtualGuardImpl(device.type())
      .getStreamFromGlobalPool(device, /*isHighPriority=*/true);
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
    : options_(options), shape_(options.features, checkpoint.config.num_patches()) {
  if (options_.devices.empty()) options_.devices = {at::kCPU};
  for (const at::Device device : options_.devices) {
    const c10::Stream stream = OwnStream(device);
    const c10::StreamGuard guard(stream);
    towers_.push_back({stream, std::make_unique<ClipTower>(checkpoint.config, checkpoint.tensors,
                                                           device, options.dtype)});
  }
  if (options.cache_file.empty()) return;
  file_ = std::make_unique<FeatureFile>(
      options.cache_file, OriginOf(checkpoint, options),
      at::IntArrayRef{shape_.tile_rows(), checkpoint.config.hidden_size}, options.dtype);
}

PictureFeatures FrozenTower::Features(const std::filesystem::path& picture) const {
  const std::string bytes = ReadPictureFile(picture);
  const Resolution size = SizeOfPicture(bytes);
  if (options_.memory_bytes == 0 && !file_) return {Compute(bytes), size};
  const Sha256Digest digest = HashBytes(bytes);
  const std::string name = ToBytes(digest);
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = kept_.find(name); found != kept_.end()) {
      ++from_memory_;
      return {found->second, size};
    }
  }
  if (file_) {
    if (const auto found = FindInFile(digest, size)) {
      ++from_file_;
      Keep(name, *found);
      return {*found, size};
    }
  }
  const at::Tensor features = Compute(bytes);
  if (file_) AddToFile(digest, features);
  Keep(name, features);
  return {features, size};
}

std::optional<at::Tensor> FrozenTower::FindInFile(const Sha256Digest& picture,
                                                  Resolution size) const {
  std::vector<at::Tensor> tiles;
  const int64_t count = shape_.NumRows(size) / shape_.tile_rows();
  for (int64_t tile = 0; tile < count; ++tile) {
    const auto found = file_->Find(NameOfTile(picture, tile));
    if (!found) return std::nullopt;
    tiles.push_back(*found);
  }
  return count == 1 ? tiles[0] : at::cat(tiles);
}

void FrozenTower::AddToFile(const Sha256Digest& picture, const at::Tensor& features) const {
  const std::vector<at::Tensor> tiles = features.split(shape_.tile_rows());
  for (size_t i = 0; i < tiles.size(); ++i) {
    file_->Add(NameOfTile(picture, static_cast<int64_t>(i)), tiles[i]);
  }
}

at::Tensor FrozenTower::Compute(const std::string& file) const {
  const Image image = DecodeImage(BytesOf(file));
  const at::NoGradGuard no_graph;
  const OneThread one;
  // A thread stays with one: LibTorch keeps work space for each device that it meets.
  static std::atomic<size_t> threads = 0;
  thread_local const size_t thread = threads++;
  const OnDevice& here = towers_[thread % towers_.size()];
  const c10::StreamGuard guard(here.stream);
  ++computed_;
  return TowerFeatures(*here.tower, options_.features, image).rows.cpu().contiguous();
}

void FrozenTower::Keep(const std::string& name, const at::Tensor& features) const {
  const auto bytes = static_cast<int64_t>(features.nbytes());
  const std::lock_guard lock(mutex_);
  if (kept_bytes_ + bytes > options_.memory_bytes) return;
  if (kept_.emplace(name, features).second) kept_bytes_ += bytes;
}

FrozenTower::Counts FrozenTower::counts() const { return {computed_, from_memory_, from_file_}; }

}  // namespace llava
