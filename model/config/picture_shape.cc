#include "model/config/picture_shape.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace llava {
namespace {

std::string Describe(Resolution size) {
  return std::to_string(size.width) + " x " + std::to_string(size.height);
}

int64_t RootOf(int64_t square) {
  const auto root = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(square))));
  return root * root == square ? root : 0;
}

}  // namespace

Resolution ChooseResolution(Resolution picture, std::span<const Resolution> candidates) {
  if (picture.width < 1 || picture.height < 1) {
    throw std::invalid_argument("picture of " + Describe(picture) + " pixels");
  }
  if (candidates.empty()) throw std::invalid_argument("no resolutions to choose from");
  const Resolution* best = nullptr;
  int64_t most = 0, least_wasted = 0;
  for (const Resolution& candidate : candidates) {
    if (candidate.width < 1 || candidate.height < 1) {
      throw std::invalid_argument("a resolution of " + Describe(candidate));
    }
    const double scale = std::min(static_cast<double>(candidate.width) / picture.width,
                                  static_cast<double>(candidate.height) / picture.height);
    const int64_t shown =
        static_cast<int64_t>(picture.width * scale) * static_cast<int64_t>(picture.height * scale);
    const int64_t kept = std::min(shown, int64_t{picture.width} * picture.height);
    const int64_t wasted = int64_t{candidate.width} * candidate.height - kept;
    if (best == nullptr || kept > most || (kept == most && wasted < least_wasted)) {
      best = &candidate;
      most = kept;
      least_wasted = wasted;
    }
  }
  return *best;
}

std::vector<Resolution> PublishedGrid(int side) {
  return {
      {side, 2 * side}, {2 * side, side}, {2 * side, 2 * side}, {3 * side, side}, {side, 3 * side}};
}

PictureShape::PictureShape(const FeatureConfig& features, int64_t tower_patches)
    : grid_(features.grid),
      tile_size_(features.tile_size),
      tile_rows_(tower_patches + (features.select_feature == SelectFeature::kClsPatch ? 1 : 0)),
      most_rows_(tile_rows_),
      most_tokens_(tile_rows_) {
  if ((features.image_mode == ImageMode::kAnyres) == grid_.empty()) {
    throw std::invalid_argument(grid_.empty() ? "the image mode anyres needs canvases"
                                              : "canvases belong to the image mode anyres alone");
  }
  if (grid_.size() > kMaxGrid) {
    throw std::invalid_argument(std::to_string(grid_.size()) + " canvases, at most " +
                                std::to_string(kMaxGrid) + " are supported");
  }
  if (!is_fixed()) {
    if (features.select_feature != SelectFeature::kPatch) {
      throw std::invalid_argument("the class token cannot be laid out with tiles (anyres)");
    }
    tile_side_ = RootOf(tower_patches);
    if (tile_side_ < 1 || tile_size_ < 1) {
      throw std::invalid_argument("a tile of " + std::to_string(tower_patches) + " patches and " +
                                  std::to_string(tile_size_) + " pixels a side is no square");
    }
    most_tokens_ = 0;
  }
  for (const Resolution& canvas : grid_) {
    const int64_t columns = canvas.width / tile_size_, rows = canvas.height / tile_size_;
    if (columns < 1 || rows < 1 || canvas.width % tile_size_ != 0 ||
        canvas.height % tile_size_ != 0 || columns * rows > kMaxTiles) {
      throw std::invalid_argument("a canvas of " + Describe(canvas) + " is not made of 1 to " +
                                  std::to_string(kMaxTiles) + " tiles of " +
                                  std::to_string(tile_size_) + " pixels");
    }
    most_rows_ = std::max(most_rows_, (1 + columns * rows) * tile_rows_);
    const int64_t tokens = tile_rows_ + WholeMap(canvas).num_tokens();
    if (tokens <= most_tokens_) continue;
    most_tokens_ = tokens;
    largest_ = canvas;  // a picture of a canvas's size is laid on that canvas and leaves no margin
  }
  if (most_tokens_ > kMaxPictureTokens) {
    throw std::invalid_argument("a picture of " + std::to_string(most_tokens_) +
                                " image tokens, at most " + std::to_string(kMaxPictureTokens) +
                                " are supported");
  }
}

PatchMap PictureShape::WholeMap(Resolution canvas) const {
  PatchMap map;
  map.tile_columns = canvas.width / tile_size_;
  map.tile_rows = canvas.height / tile_size_;
  map.tile_side = tile_side_;
  map.width = map.tile_columns * tile_side_;
  map.height = map.tile_rows * tile_side_;
  return map;
}

PatchMap PictureShape::MapOf(Resolution picture) const {
  PatchMap map = WholeMap(ChooseResolution(picture, grid_));
  // In whole numbers, as transformers; the original's floating point is one patch short now and
  // then.
  if (picture.width * map.height > picture.height * map.width) {
    const int64_t shown = picture.height * map.width / picture.width;
    map.top = (map.height - shown) / 2;
    map.height -= 2 * map.top;
  } else {
    const int64_t shown = picture.width * map.height / picture.height;
    map.left = (map.width - shown) / 2;
    map.width -= 2 * map.left;
  }
  return map;
}

int64_t PictureShape::NumRows(Resolution picture) const {
  return is_fixed() ? tile_rows_ : (1 + MapOf(picture).num_tiles()) * tile_rows_;
}

int64_t PictureShape::NumTokens(Resolution picture) const {
  return is_fixed() ? tile_rows_ : tile_rows_ + MapOf(picture).num_tokens();
}

}  // namespace llava
