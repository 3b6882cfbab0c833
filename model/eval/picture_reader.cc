#include "model/eval/picture_reader.h"

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

PictureFeatures TowerReader::Features(const Scene& scene) const {
  return TowerFeatures(*tower_, features_, Draw(scene));
}

}  // namespace llava
