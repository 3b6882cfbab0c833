#include "model/data/scenes/render.h"

#include <algorithm>
#include <array>

#include "model/data/scenes/random.h"

namespace llava {
namespace {

// Background values are in 1/256 of a level.
constexpr int kOne = 256;
constexpr int kTint = 7 * kOne;       // standard deviations: per channel,
constexpr int kGradient = 12 * kOne;  // over the whole side,
constexpr int kBlockNoise = 6 * kOne;
constexpr int kBlock = 8;  // pixels
constexpr uint64_t kRenderPurpose = 2;

uint8_t ToLevel(int value) { return static_cast<uint8_t>(std::clamp(value, 0, 255 * kOne) / kOne); }

// Adds noise of standard deviation 5.2 to each pixel.
void AddPixelNoise(std::vector<int>& field, Random& random) {
  for (size_t i = 0; i < field.size(); i += 2) {
    uint64_t bits = random.Bits();
    for (size_t k = 0; k < 2; ++k, bits >>= 32) {
      const int sum = static_cast<int>((bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) +
                                       (bits >> 24 & 255));
      field[i + k] += (sum - 510) * 9;  // of the sum: 148
    }
  }
}

void AddBlockNoise(std::vector<int>& field, Random& random) {
  for (int top = 0; top < kSceneSide; top += kBlock) {
    for (int left = 0; left < kSceneSide; left += kBlock) {
      const int value = random.Bell(kBlockNoise);
      for (int y = top; y < top + kBlock; ++y) {
        for (int x = left; x < left + kBlock; ++x) field[y * kSceneSide + x] += value;
      }
    }
  }
}

void FillBackground(const Background& background, Random& random, Image& image) {
  std::array<int, 3> colour;
  for (size_t c = 0; c < 3; ++c) colour[c] = background.rgb[c] * kOne + random.Bell(kTint);
  const int across = random.Bell(kGradient);
  const int down = random.Bell(kGradient);
  std::vector<int> field(kSceneSide * kSceneSide);  // what all channels share
  for (int y = 0; y < kSceneSide; ++y) {
    for (int x = 0; x < kSceneSide; ++x) {
      field[y * kSceneSide + x] =
          (across * (x - kSceneSide / 2) + down * (y - kSceneSide / 2)) / kSceneSide;
    }
  }
  switch (random.Below(3)) {
    case 0:
      break;
    case 1:
      AddBlockNoise(field, random);
      break;
    default:
      AddPixelNoise(field, random);
  }
  for (size_t i = 0; i < field.size(); ++i) {
    for (size_t c = 0; c < 3; ++c) image.rgb[3 * i + c] = ToLevel(colour[c] + field[i]);
  }
}

// `brightness` in 1/256.
void Draw(const Sprite& sprite, const PixelBox& box, bool mirrored, int brightness, Image& image) {
  for (int y = 0; y < box.height; ++y) {
    const uint8_t* from = &sprite.rgba[4 * y * box.width];
    uint8_t* to = &image.rgb[3 * ((box.y + y) * image.width + box.x)];
    for (int x = 0; x < box.width; ++x, to += 3) {
      const uint8_t* pixel = from + 4 * (mirrored ? box.width - 1 - x : x);
      const int behind = 255 - pixel[3];
      for (int c = 0; c < 3; ++c) {
        const int light = (pixel[c] * brightness + 128) / 256;
        to[c] = static_cast<uint8_t>(std::min(255, (to[c] * behind + 127) / 255 + light));
      }
    }
  }
}

}  // namespace

Image SceneRenderer::Render(const Scene& scene) {
  Random random(scene.render_seed, 0, kRenderPurpose);
  Image image{kSceneSide, kSceneSide, std::vector<uint8_t>(kSceneSide * kSceneSide * 3)};
  FillBackground(kBackgrounds[scene.background], random, image);
  for (const SceneObject& object : scene.objects) {
    Draw(sprites_.Scaled(object.category, object.size), BoxOf(object), object.mirrored,
         random.Between(225, 287), image);  // 0.88 .. 1.12
  }
  return image;
}

}  // namespace llava
