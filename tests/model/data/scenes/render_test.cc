#include "model/data/scenes/render.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "model/digest/sha256.h"

namespace llava {
namespace {

SceneOptions Hard() {
  SceneOptions options;
  options.num_categories = kLargeCategorySet;
  options.max_objects = 4;
  options.positions = SceneOptions::Positions::kFree;
  return options;
}

std::string Digest(const SceneOptions& options) {
  SceneRenderer renderer;
  Sha256 hash;
  for (uint64_t i = 0; i < 100; ++i)
    hash.Update(renderer.Render(SampleScene(options, 2024, i)).rgb);
  return ToHex(hash.Finish()).substr(0, 16);
}

// Change them only together with a new format of data sets.
TEST(RenderTest, PicturesAreTheSameForEver) {
  EXPECT_EQ(Digest({}), "6472151a76403d7f");
  EXPECT_EQ(Digest(Hard()), "6303a4ef83c7ef89");
}

TEST(RenderTest, TheCacheDoesNotShow) {
  SceneRenderer used;
  for (uint64_t i = 0; i < 50; ++i) used.Render(SampleScene(Hard(), 1, i));
  for (uint64_t i = 0; i < 10; ++i) {
    const Scene scene = SampleScene(Hard(), 1, i);
    EXPECT_EQ(used.Render(scene).rgb, SceneRenderer().Render(scene).rgb);
  }
}

// Where a picture with the object differs from that without it is the box, within a pixel of
// antialiased edge a side.
TEST(RenderTest, BoxesAreWhereThePixelsAre) {
  SceneRenderer renderer;
  for (const auto& options : {SceneOptions(), Hard()}) {
    for (uint64_t i = 0; i < 300; ++i) {
      Scene scene = SampleScene(options, 3, i);
      scene.objects.resize(1);
      const Image with = renderer.Render(scene);
      ASSERT_EQ(with.rgb.size(), static_cast<size_t>(kSceneSide * kSceneSide * 3));
      const PixelBox box = BoxOf(scene.objects[0]);
      const std::string name = Categories()[scene.objects[0].category].name;
      scene.objects.clear();
      const Image without = renderer.Render(scene);
      int left = kSceneSide, top = kSceneSide, right = -1, bottom = -1;
      for (int y = 0; y < kSceneSide; ++y) {
        for (int x = 0; x < kSceneSide; ++x) {
          const size_t at = 3 * (y * kSceneSide + x);
          if (std::equal(&with.rgb[at], &with.rgb[at] + 3, &without.rgb[at])) continue;
          left = std::min(left, x);
          right = std::max(right, x);
          top = std::min(top, y);
          bottom = std::max(bottom, y);
        }
      }
      EXPECT_GE(left, box.x) << name;
      EXPECT_LE(left, box.x + 1) << name;
      EXPECT_GE(top, box.y) << name;
      EXPECT_LE(top, box.y + 1) << name;
      EXPECT_LE(right, box.x + box.width - 1) << name;
      EXPECT_GE(right, box.x + box.width - 2) << name;
      EXPECT_LE(bottom, box.y + box.height - 1) << name;
      EXPECT_GE(bottom, box.y + box.height - 2) << name;
    }
  }
}

TEST(RenderTest, MirrorsTheSprite) {
  Sprites sprites;
  const Sprite& sprite = sprites.Scaled(*FindCategory("guitar"), 48);
  const auto solid = [&](int x, int y) {
    return sprite.rgba[4 * (y * sprite.width + x) + 3] == 255;
  };
  Scene scene;
  scene.objects = {{.category = *FindCategory("guitar"), .size = 48, .x = 48, .y = 48}};
  SceneRenderer renderer;
  const Image plain = renderer.Render(scene);
  scene.objects[0].mirrored = true;
  const Image mirrored = renderer.Render(scene);
  const PixelBox box = BoxOf(scene.objects[0]);
  int compared = 0;
  for (int y = 0; y < box.height; ++y) {
    for (int x = 0; x < box.width; ++x) {
      if (!solid(x, y)) continue;  // elsewhere the background shows through
      const size_t a = 3 * ((box.y + y) * kSceneSide + box.x + x);
      const size_t b = 3 * ((box.y + y) * kSceneSide + box.x + box.width - 1 - x);
      EXPECT_TRUE(std::equal(&plain.rgb[a], &plain.rgb[a] + 3, &mirrored.rgb[b]));
      ++compared;
    }
  }
  EXPECT_GE(compared, 300);
  EXPECT_NE(plain.rgb, mirrored.rgb);
}

TEST(RenderTest, BackgroundsLookAsTheyAreCalled) {
  SceneRenderer renderer;
  for (size_t b = 0; b < kBackgrounds.size(); ++b) {
    for (uint64_t seed = 0; seed < 200; ++seed) {
      Scene scene;
      scene.background = static_cast<int>(b);
      scene.render_seed = seed;
      const Image image = renderer.Render(scene);
      std::array<double, 3> mean{};
      for (size_t i = 0; i < image.rgb.size(); ++i) mean[i % 3] += image.rgb[i];
      size_t nearest = 0;
      double best = 1e9;
      for (size_t k = 0; k < kBackgrounds.size(); ++k) {
        double distance = 0;
        for (size_t c = 0; c < 3; ++c) {
          distance += std::abs(mean[c] / (kSceneSide * kSceneSide) - kBackgrounds[k].rgb[c]);
        }
        if (distance < best) best = distance, nearest = k;
      }
      EXPECT_EQ(nearest, b) << seed;
    }
  }
}

}  // namespace
}  // namespace llava
