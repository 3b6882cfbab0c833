#include "model/data/scenes/sprites.h"

#include <algorithm>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>
#include <string>

#include "model/data/scenes/embedded_files.h"
#include "model/data/scenes/scene.h"
#include "model/image/image.h"

namespace llava {
namespace {

// [rows, columns, 4], blue first, as OpenCV decodes it.
const cv::Mat& Atlas() {
  static const cv::Mat atlas = [] {
    const std::string_view png = SpriteAtlasPng();
    // OpenCV does not write to its input.
    const cv::Mat bytes(1, static_cast<int>(png.size()), CV_8UC1, const_cast<char*>(png.data()));
    cv::Mat pixels = cv::imdecode(bytes, cv::IMREAD_UNCHANGED);
    if (pixels.type() != CV_8UC4) {
      throw std::runtime_error("the built-in sprites cannot be decoded as a picture with alpha");
    }
    return pixels;
  }();
  return atlas;
}

uint8_t Multiply(int colour, int alpha) {
  return static_cast<uint8_t>((colour * alpha + 127) / 255);
}

// Scaled by our own resampler, not OpenCV's: the same bytes on every machine.
Sprite Scale(const Category& category, int size) {
  const auto& at = category.sprite;
  const cv::Mat source = Atlas()(cv::Rect(at.x, at.y, at.width, at.height));
  Image colours{at.width, at.height, {}};
  Image alphas{at.width, at.height, {}};
  for (int y = 0; y < at.height; ++y) {
    const auto* pixels = source.ptr<cv::Vec4b>(y);
    for (int x = 0; x < at.width; ++x) {
      const uint8_t alpha = pixels[x][3];
      for (const int channel : {2, 1, 0}) {
        colours.rgb.push_back(Multiply(pixels[x][channel], alpha));
        alphas.rgb.push_back(alpha);
      }
    }
  }
  SceneObject object;
  object.category = static_cast<int>(&category - Categories().data());
  object.size = size;
  const PixelBox box = BoxOf(object);
  colours = ResizeBicubic(colours, box.width, box.height);
  alphas = ResizeBicubic(alphas, box.width, box.height);
  Sprite sprite{box.width, box.height, {}};
  for (size_t i = 0; i < colours.rgb.size(); i += 3) {
    const uint8_t alpha = alphas.rgb[i];
    for (size_t channel = 0; channel < 3; ++channel) {
      sprite.rgba.push_back(std::min(colours.rgb[i + channel], alpha));  // bicubic may overshoot
    }
    sprite.rgba.push_back(alpha);
  }
  return sprite;
}

}  // namespace

Sprites::Sprites() : cache_(Categories().size(), std::vector<Sprite>(kSceneSide + 1)) {}

const Sprite& Sprites::Scaled(int category, int size) {
  Sprite& sprite = cache_.at(category).at(size);
  if (sprite.rgba.empty()) sprite = Scale(Categories()[category], size);
  return sprite;
}

}  // namespace llava
