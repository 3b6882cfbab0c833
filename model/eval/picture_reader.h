#pragma once

// What an eye makes of a scene.

#include <memory>
#include <mutex>
#include <vector>

#include "model/config/model_config.h"
#include "model/data/scenes/render.h"
#include "model/data/scenes/scene.h"
#include "model/image/image.h"
#include "model/llava/tower_features.h"
#include "model/nn/clip.h"

namespace llava {

// Thread-safe.
class PictureReader {
 public:
  virtual ~PictureReader() = default;
  // Z_v of the picture of a scene.
  virtual PictureFeatures Features(const Scene& scene) const = 0;
};

// Draws the scene, then preprocessing and tower as in serving.
class TowerReader : public PictureReader {
 public:
  // `tower` must outlive the reader. `features`: of the language model that is served with it.
  TowerReader(const ClipTower& tower, const FeatureConfig& features);
  ~TowerReader() override;
  PictureFeatures Features(const Scene& scene) const override;

 private:
  Image Draw(const Scene& scene) const;

  const ClipTower* tower_;
  FeatureConfig features_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<SceneRenderer>> idle_;  // each draws for one thread at a time
};

}  // namespace llava
