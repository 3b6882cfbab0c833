#include "model/llava/tower_features.h"

#include <algorithm>
#include <vector>

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include "model/image/anyres.h"

namespace llava {
namespace {

// A GPU is not filled by one tile; on a CPU more at once would only take memory.
constexpr size_t kTilesOnDevice = 8;

}  // namespace

PictureFeatures TowerFeatures(const ClipTower& tower, const FeatureConfig& features,
                              const Image& image) {
  const PreprocessConfig& preprocess = tower.config().preprocess;
  std::vector<Image> inputs;
  if (features.image_mode == ImageMode::kAnyres) {
    inputs = AnyresTiles(image, features.grid, preprocess);
  } else {
    inputs = {FitToTower(image, features.image_mode, preprocess)};
  }
  const int64_t side = preprocess.image_size;
  const size_t at_once = tower.device().is_cpu() ? 1 : kTilesOnDevice;
  std::vector<at::Tensor> rows;
  for (size_t first = 0; first < inputs.size(); first += at_once) {
    std::vector<at::Tensor> pixels;
    for (size_t i = first; i < std::min(inputs.size(), first + at_once); ++i) {
      pixels.push_back(
          at::tensor(NormalizePixels(inputs[i], preprocess), at::kFloat).view({1, 3, side, side}));
    }
    const at::Tensor batch =
        at::cat(pixels).to(at::TensorOptions(tower.device()).dtype(tower.dtype()));
    rows.push_back(tower.Features(batch, features).flatten(0, 1));
  }
  return {rows.size() == 1 ? rows[0] : at::cat(rows), {image.width, image.height}};
}

}  // namespace llava
