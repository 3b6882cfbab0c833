#include "server/vision/encode_job.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "model/config/picture_shape.h"
#include "server/wire/feature_key.h"

namespace llava {

absl::StatusOr<EncodeJob> JobOf(const v1::VisionSpec& spec, const TowerInfo& tower) {
  const int64_t layers = tower.num_layers;
  if (spec.select_layer() > layers || spec.select_layer() < -layers - 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "select_layer is ", spec.select_layer(), ", the tower has ", -layers - 1, " to ", layers));
  }
  if (spec.grid_size() > kMaxGrid) {
    return absl::InvalidArgumentError(
        absl::StrCat("grid has ", spec.grid_size(), " canvases, at most ", kMaxGrid, " are taken"));
  }
  EncodeJob job;
  const auto side = static_cast<uint32_t>(tower.preprocess.image_size);
  for (int i = 0; i < spec.grid_size(); ++i) {
    const v1::GridPoint& canvas = spec.grid(i);
    const uint64_t columns = canvas.width() / side, rows = canvas.height() / side;
    if (columns == 0 || rows == 0 || canvas.width() % side != 0 || canvas.height() % side != 0 ||
        columns * rows > kMaxTiles) {
      return absl::InvalidArgumentError(absl::StrCat("grid[", i, "] is ", canvas.width(), " x ",
                                                     canvas.height(), "; expected are 1 to ",
                                                     kMaxTiles, " tiles of ", side, " x ", side));
    }
    job.grid.push_back({static_cast<int>(canvas.width()), static_cast<int>(canvas.height())});
  }
  job.image_mode = spec.image_mode() == v1::IMAGE_MODE_PAD ? ImageMode::kPad : ImageMode::kCrop;
  job.select_layer = spec.select_layer();
  job.select_feature = spec.select_feature() == v1::SELECT_FEATURE_CLS_PATCH
                           ? SelectFeature::kClsPatch
                           : SelectFeature::kPatch;
  job.spec_digest = SpecDigest(spec);
  return job;
}

}  // namespace llava
