#pragma once

// Pictures of any shape as tiles of the tower's size: LLaVA 1.6, image_aspect_ratio "anyres".

#include <cstdint>
#include <span>
#include <vector>

#include "model/config/model_config.h"
#include "model/image/image.h"

namespace llava {

struct Resolution {
  int width = 0;
  int height = 0;
  bool operator==(const Resolution&) const = default;
};

// Of `candidates` (image_grid_pinpoints) the one that keeps most of the picture's pixels; of equals
// the one that wastes least; of those the first. Throws std::invalid_argument if there is none, or
// a side below 1.
Resolution ChooseResolution(Resolution picture, std::span<const Resolution> candidates);

// The picture as large as it fits into `canvas`, in the middle, on black.
Image FitOnBlack(const Image& image, Resolution canvas);

// Of a canvas: the overview and its tiles of [S, S]. Throws std::invalid_argument if its sides are
// no multiples of S, or below it.
int64_t NumTiles(Resolution canvas, const PreprocessConfig& config);

// The whole picture squashed to [S, S], then the tiles of the chosen resolution row by row: each
// the tower's input before normalisation. Throws std::invalid_argument if a candidate's sides are
// no multiples of S.
std::vector<Image> AnyresTiles(const Image& image, std::span<const Resolution> candidates,
                               const PreprocessConfig& config);

}  // namespace llava
