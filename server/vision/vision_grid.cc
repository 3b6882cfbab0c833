#include "server/vision/vision_grid.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "model/config/picture_shape.h"

namespace llava {

absl::StatusOr<std::vector<Resolution>> ReadGrid(const v1::VisionSpec& spec,
                                                 const PreprocessConfig& preprocess) {
  if (spec.grid_size() > kMaxGrid) {
    return absl::InvalidArgumentError(
        absl::StrCat("grid has ", spec.grid_size(), " canvases, at most ", kMaxGrid, " are taken"));
  }
  const auto side = static_cast<uint32_t>(preprocess.image_size);
  std::vector<Resolution> grid;
  for (int i = 0; i < spec.grid_size(); ++i) {
    const v1::GridPoint& canvas = spec.grid(i);
    const uint64_t columns = canvas.width() / side, rows = canvas.height() / side;
    if (columns == 0 || rows == 0 || canvas.width() % side != 0 || canvas.height() % side != 0 ||
        columns * rows > kMaxTiles) {
      return absl::InvalidArgumentError(absl::StrCat("grid[", i, "] is ", canvas.width(), " x ",
                                                     canvas.height(), "; expected are 1 to ",
                                                     kMaxTiles, " tiles of ", side, " x ", side));
    }
    grid.push_back({static_cast<int>(canvas.width()), static_cast<int>(canvas.height())});
  }
  return grid;
}

}  // namespace llava
