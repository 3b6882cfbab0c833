#include "model/image/image.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "model/image/resample.h"

namespace llava {
namespace {

// A picture on a larger canvas of one colour. The canvas is never stored: a sliver of 1 x 30000
// pixels must not cost 30000 x 30000.
struct Canvas {
  const Image& image;
  Axis x, y;
  Colour fill;
};

void CheckImage(const Image& image) {
  if (image.width < 1 || image.height < 1 ||
      image.rgb.size() != static_cast<size_t>(image.width) * image.height * 3) {
    throw std::invalid_argument("picture of " + std::to_string(image.width) + " x " +
                                std::to_string(image.height) + " pixels holds " +
                                std::to_string(image.rgb.size()) + " bytes");
  }
}

void CheckSide(int64_t side) {
  if (side < 1 || side > INT32_MAX) {
    throw std::invalid_argument("cannot resize to a side of " + std::to_string(side) + " pixels");
  }
}

Canvas Whole(const Image& image) {
  return {image, {image.width, 0, image.width}, {image.height, 0, image.height}, {}};
}

// What part of the resized picture is wanted.
struct Window {
  int x, y, width, height;
};

// The part `window` of the canvas drawn as full_width x full_height: horizontal pass, 8-bit
// rounding, vertical pass, 8-bit rounding. Only what the window needs is computed. (Pillow skips a
// pass that keeps the size; its weights would be 0, 1, 0, 0 anyway.)
Image ResizeWindow(const Canvas& canvas, int full_width, int full_height, const Window& window) {
  const std::vector<Taps> horizontal = BicubicTaps(canvas.x, full_width, window.x, window.width);
  const std::vector<Taps> vertical = BicubicTaps(canvas.y, full_height, window.y, window.height);
  int first_row = canvas.y.picture, last_row = 0;
  for (const Taps& taps : vertical) {
    if (taps.weights.empty()) continue;
    first_row = std::min(first_row, taps.first);
    last_row = std::max(last_row, taps.first + static_cast<int>(taps.weights.size()));
  }
  const int rows = std::max(last_row - first_row, 0);
  const size_t line = static_cast<size_t>(canvas.image.width) * 3;
  const uint8_t* data = canvas.image.rgb.data() + (rows == 0 ? 0 : first_row * line);
  const std::vector<uint8_t> middle =
      ResampleRows({data, canvas.image.width, rows}, horizontal, canvas.fill);
  // A row of nothing but margin keeps its colour through the horizontal pass.
  return {window.width, window.height,
          ResampleColumns({middle.data(), window.width, rows}, first_row, vertical, canvas.fill)};
}

Image CropCanvas(const Canvas& canvas, int size) {
  CheckSide(size);
  const int canvas_width = canvas.x.length, canvas_height = canvas.y.length;
  const int64_t shorter = std::min(canvas_width, canvas_height);
  const int64_t longer = int64_t{size} * std::max(canvas_width, canvas_height) / shorter;
  CheckSide(longer);
  const int width = canvas_width <= canvas_height ? size : static_cast<int>(longer);
  const int height = canvas_width <= canvas_height ? static_cast<int>(longer) : size;
  return ResizeWindow(canvas, width, height, {(width - size) / 2, (height - size) / 2, size, size});
}

Canvas SquareCanvas(const Image& image, const std::array<float, 3>& mean) {
  Colour fill;
  for (int c = 0; c < 3; ++c) fill[c] = static_cast<uint8_t>(255.0 * mean[c]);
  const int side = std::max(image.width, image.height);
  return {image,
          {side, (side - image.width) / 2, image.width},
          {side, (side - image.height) / 2, image.height},
          fill};
}

}  // namespace

Image ResizeBicubic(const Image& image, int width, int height) {
  CheckImage(image);
  CheckSide(width);
  CheckSide(height);
  return ResizeWindow(Whole(image), width, height, {0, 0, width, height});
}

Image FitToTower(const Image& image, ImageMode mode, const PreprocessConfig& config) {
  if (mode == ImageMode::kAnyres) {
    throw std::invalid_argument("a picture of the anyres mode is not one input of the tower");
  }
  CheckImage(image);
  const int size = static_cast<int>(config.image_size);
  return CropCanvas(mode == ImageMode::kPad ? SquareCanvas(image, config.mean) : Whole(image),
                    size);
}

std::vector<float> NormalizePixels(const Image& fitted, const PreprocessConfig& config) {
  CheckImage(fitted);
  const int64_t side = config.image_size;
  if (fitted.width != side || fitted.height != side) {
    throw std::invalid_argument("picture of " + std::to_string(fitted.width) + " x " +
                                std::to_string(fitted.height) + " pixels is not fitted to " +
                                std::to_string(side) + " x " + std::to_string(side));
  }
  const size_t plane = static_cast<size_t>(side) * side;
  std::vector<float> pixels(3 * plane);
  for (size_t c = 0; c < 3; ++c) {
    std::array<float, 256> value;
    for (int v = 0; v < 256; ++v) {
      value[v] = static_cast<float>((v / 255.0 - config.mean[c]) / config.std[c]);
    }
    for (size_t i = 0; i < plane; ++i) pixels[c * plane + i] = value[fitted.rgb[i * 3 + c]];
  }
  return pixels;
}

}  // namespace llava
