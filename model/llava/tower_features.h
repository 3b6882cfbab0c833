#pragma once

// What a tower makes of a picture.

#include <ATen/core/Tensor.h>

#include "model/config/model_config.h"
#include "model/image/image.h"
#include "model/nn/clip.h"

namespace llava {

// Z_v of a picture, as many rows as PictureShape says, and what it says so of.
struct PictureFeatures {
  at::Tensor rows;
  Resolution size = {};  // of the picture, in pixels
};

// Preprocessed as in serving.
PictureFeatures TowerFeatures(const ClipTower& tower, const FeatureConfig& features,
                              const Image& image);

}  // namespace llava
