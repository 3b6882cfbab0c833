#pragma once

// Pictures in memory and their way to pixel values. No LibTorch, no OpenCV here: decoding is
// model/image/decode.h.

#include <cstdint>
#include <vector>

#include "model/config/model_config.h"

namespace llava {

// 8-bit RGB, rows top to bottom, [height, width, 3].
struct Image {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> rgb;
};

// Pillow's bicubic (a = -0.5, support widened when shrinking, weights of 22 fractional bits, 8-bit
// result after each pass): bit-equal to Image.resize. Sides must be at least 1.
Image ResizeBicubic(const Image& image, int width, int height);

// The picture as the tower's input before normalisation: [S, S, 3]. Shorter side to S, longer side
// truncate(S * long / short), then centre crop; in the pad mode of a square canvas of the longer
// side filled with truncate(255 * mean), the picture in the middle. Throws std::invalid_argument
// for the anyres mode (model/image/anyres.h).
Image FitToTower(const Image& image, ImageMode mode, const PreprocessConfig& config);

// (x / 255 - mean) / std, [3, S, S] row-major, from a fitted picture.
std::vector<float> NormalizePixels(const Image& fitted, const PreprocessConfig& config);

}  // namespace llava
