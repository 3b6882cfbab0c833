#include "model/eval/picture_reader.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>

#include "model/image/anyres.h"

namespace llava {

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
  std::vector<at::Tensor> rows;
  for (const Image& input : inputs) {
    std::vector<float> values = NormalizePixels(input, preprocess);
    const at::Tensor pixels =
        at::from_blob(values.data(), {1, 3, side, side}, at::TensorOptions(at::kFloat))
            .to(at::TensorOptions(tower.device()).dtype(tower.dtype()), false, /*copy=*/true);
    rows.push_back(tower.Features(pixels, features)[0]);
  }
  return {rows.size() == 1 ? rows[0] : at::cat(rows), {image.width, image.height}};
}

TowerReader::TowerReader(const ClipTower& tower, const FeatureConfig& features)
    : tower_(&tower), features_(features) {}

TowerReader::~TowerReader() = default;

Image TowerReader::Draw(const Scene& scene) const {
  std::unique_ptr<SceneRenderer> renderer;
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      renderer = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (!renderer) renderer = std::make_unique<SceneRenderer>();
  Image image = renderer->Render(scene);
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(renderer));
  return image;
}

PictureFeatures TowerReader::Features(const Scene& scene) const {
  return TowerFeatures(*tower_, features_, Draw(scene));
}

}  // namespace llava
