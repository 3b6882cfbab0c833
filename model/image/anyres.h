#pragma once

// Pictures of any shape as tiles of the tower's size: LLaVA 1.6, image_aspect_ratio "anyres". Which
// canvas, and what becomes of the tiles' features: model/config/picture_shape.h.

#include <cstdint>
#include <span>
#include <vector>

#include "model/config/model_config.h"
#include "model/image/image.h"

namespace llava {

// The picture as large as it fits into `canvas`, in the middle, on black.
Image FitOnBlack(const Image& image, Resolution canvas);

// Of a canvas: the overview and its tiles of [S, S]. Throws std::invalid_argument if its sides are
// no multiples of S, or below it.
int64_t NumTiles(Resolution canvas, const PreprocessConfig& config);

// The whole picture squashed to [S, S], then the tiles of the canvas that ChooseResolution takes,
// row by row: each the tower's input before normalisation. Throws std::invalid_argument if a
// candidate's sides are no multiples of S.
std::vector<Image> AnyresTiles(const Image& image, std::span<const Resolution> candidates,
                               const PreprocessConfig& config);

}  // namespace llava
