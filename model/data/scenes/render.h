#pragma once

// Pictures of scenes. All arithmetic is in integers: a scene gives the same bytes everywhere.

#include "model/data/scenes/scene.h"
#include "model/data/scenes/sprites.h"
#include "model/image/image.h"

namespace llava {

// Draws scenes: a background with tint, gradient and (in two thirds of them) noise by blocks or by
// pixels, and the sprites with a brightness of their own. One thread; keeps the scaled sprites, so
// use one renderer for many pictures.
class SceneRenderer {
 public:
  // [kSceneSide, kSceneSide, 3].
  Image Render(const Scene& scene);

 private:
  Sprites sprites_;
};

}  // namespace llava
