#include "model/eval/picture_reader.h"

#include <ATen/ops/from_blob.h>

#include "model/image/image.h"

namespace llava {

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

at::Tensor TowerReader::Features(const Scene& scene) const {
  const PreprocessConfig& preprocess = tower_->config().preprocess;
  std::vector<float> values =
      NormalizePixels(FitToTower(Draw(scene), features_.image_mode, preprocess), preprocess);
  const int64_t side = preprocess.image_size;
  const at::Tensor pixels =
      at::from_blob(values.data(), {1, 3, side, side}, at::TensorOptions(at::kFloat))
          .to(at::TensorOptions(tower_->device()).dtype(tower_->dtype()), false, /*copy=*/true);
  return tower_->Features(pixels, features_)[0];
}

}  // namespace llava
