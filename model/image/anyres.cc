#include "model/image/anyres.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "model/config/picture_shape.h"

namespace llava {
namespace {

std::string Describe(Resolution size) {
  return std::to_string(size.width) + " x " + std::to_string(size.height);
}

// Pixels [x, x + size) x [y, y + size).
Image Tile(const Image& image, int x, int y, int size) {
  const size_t line = static_cast<size_t>(size) * 3;
  Image tile{size, size, std::vector<uint8_t>(line * size)};
  for (int row = 0; row < size; ++row) {
    const size_t from = (static_cast<size_t>(y + row) * image.width + x) * 3;
    std::copy_n(&image.rgb[from], line, &tile.rgb[row * line]);
  }
  return tile;
}

}  // namespace

Image FitOnBlack(const Image& image, Resolution canvas) {
  const double wide = static_cast<double>(canvas.width) / image.width;
  const double high = static_cast<double>(canvas.height) / image.height;
  const auto other = [](int side, double scale, int most) {
    return static_cast<int>(std::min<double>(std::ceil(side * scale), most));
  };
  const Resolution size = wide < high
                              ? Resolution{canvas.width, other(image.height, wide, canvas.height)}
                              : Resolution{other(image.width, high, canvas.width), canvas.height};
  const Image resized = ResizeBicubic(image, size.width, size.height);
  const size_t line = static_cast<size_t>(canvas.width) * 3;
  Image result{canvas.width, canvas.height, std::vector<uint8_t>(line * canvas.height)};
  const int x = (canvas.width - size.width) / 2, y = (canvas.height - size.height) / 2;
  const size_t part = static_cast<size_t>(size.width) * 3;
  for (int row = 0; row < size.height; ++row) {
    std::copy_n(&resized.rgb[row * part], part, &result.rgb[(y + row) * line + size_t{3} * x]);
  }
  return result;
}

int64_t NumTiles(Resolution canvas, const PreprocessConfig& config) {
  const int64_t size = config.image_size;
  if (canvas.width < size || canvas.height < size || canvas.width % size != 0 ||
      canvas.height % size != 0) {
    throw std::invalid_argument("a resolution of " + Describe(canvas) +
                                " does not consist of tiles of " + std::to_string(size) +
                                " pixels");
  }
  return 1 + canvas.width / size * (canvas.height / size);
}

std::vector<Image> AnyresTiles(const Image& image, std::span<const Resolution> candidates,
                               const PreprocessConfig& config) {
  const int size = static_cast<int>(config.image_size);
  for (const Resolution& candidate : candidates) NumTiles(candidate, config);
  const Resolution chosen = ChooseResolution({image.width, image.height}, candidates);
  std::vector<Image> tiles = {ResizeBicubic(image, size, size)};
  const Image fitted = FitOnBlack(image, chosen);
  for (int y = 0; y < chosen.height; y += size) {
    for (int x = 0; x < chosen.width; x += size) tiles.push_back(Tile(fitted, x, y, size));
  }
  return tiles;
}

}  // namespace llava
