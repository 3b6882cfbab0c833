// Numbers worked out by hand; thousands more are compared with transformers' in
// tests/parity/next_parity_test.cc.

#include "model/config/picture_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace llava {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

// Tiles of 10 pixels and 4 x 4 patches.
FeatureConfig Tiles(std::vector<Resolution> grid) {
  FeatureConfig features;
  features.image_mode = ImageMode::kAnyres;
  features.grid = std::move(grid);
  features.tile_size = 10;
  return features;
}

TEST(PictureShapeTest, WithoutTilesSizesDoNotMatter) {
  FeatureConfig features;
  const PictureShape patches(features, 576);
  EXPECT_TRUE(patches.is_fixed());
  EXPECT_EQ(patches.NumRows({}), 576);
  EXPECT_EQ(patches.NumTokens({1, 9000}), 576);
  EXPECT_EQ(patches.most_tokens(), 576);
  features.select_feature = SelectFeature::kClsPatch;
  EXPECT_EQ(PictureShape(features, 576).NumTokens({}), 577);
  EXPECT_EQ(PictureShape(features, 576).most_rows(), 577);
  EXPECT_EQ(PictureShape().NumTokens({}), 0);
}

TEST(PictureShapeTest, CutsTheMarginOffOnBothSides) {
  const PictureShape shape(Tiles({{20, 10}, {10, 20}}), 16);
  EXPECT_FALSE(shape.is_fixed());
  EXPECT_EQ(shape.tile_rows(), 16);
  EXPECT_EQ(shape.most_rows(), 3 * 16);
  EXPECT_EQ(shape.most_tokens(), 16 + 8 * 5);  // 8 rows of 4 patches and a newline
  EXPECT_EQ(shape.largest(), (Resolution{10, 20}));

  // 8 x 4 patches, all of them picture.
  EXPECT_EQ(shape.NumTokens({200, 100}), 16 + 4 * 9);
  // A quarter as high as wide: 2 of 4 rows.
  PatchMap map = shape.MapOf({400, 100});
  EXPECT_EQ(map.num_tiles(), 2);
  EXPECT_EQ(map.top, 1);
  EXPECT_EQ(map.height, 2);
  EXPECT_EQ(map.left, 0);
  EXPECT_EQ(map.width, 8);
  EXPECT_EQ(shape.NumTokens({400, 100}), 16 + 2 * 9);
  // Three rows of picture lie askew: half a row of margin is not cut.
  EXPECT_EQ(shape.MapOf({800, 300}).height, 4);
  // Square on the first of two that waste as much: 4 of 8 columns.
  map = shape.MapOf({70, 70});
  EXPECT_EQ(map.left, 2);
  EXPECT_EQ(map.width, 4);
  EXPECT_EQ(shape.NumTokens({70, 70}), 16 + 4 * 5);
}

TEST(PictureShapeTest, OfASliverNewlinesAreLeft) {
  const PictureShape shape(Tiles({{20, 10}, {10, 20}}), 16);
  EXPECT_EQ(shape.NumTokens({1, 500}), 16 + 4) << "4 rows without a patch";
  EXPECT_EQ(shape.NumTokens({500, 1}), 16) << "no row";
  EXPECT_EQ(shape.NumRows({500, 1}), 3 * 16);
}

TEST(PictureShapeTest, RefusesWhatCannotBe) {
  const auto refused = [](FeatureConfig features, int64_t patches, const char* why) {
    EXPECT_THAT([&] { PictureShape(features, patches); },
                ThrowsMessage<std::invalid_argument>(HasSubstr(why)));
  };
  refused(Tiles({}), 16, "needs canvases");
  FeatureConfig pad = Tiles({{10, 10}});
  pad.image_mode = ImageMode::kPad;
  refused(pad, 16, "anyres alone");
  refused(Tiles({{15, 10}}), 16, "15 x 10");
  refused(Tiles({{0, 10}}), 16, "0 x 10");
  refused(Tiles({{370, 10}}), 16, "370 x 10");
  refused(Tiles(std::vector<Resolution>(65, {10, 10})), 16, "65 canvases");
  refused(Tiles({{10, 10}}), 17, "17 patches");
  refused(Tiles({{360, 10}}), 64 * 64, "image tokens");
  FeatureConfig with_class = Tiles({{10, 10}});
  with_class.select_feature = SelectFeature::kClsPatch;
  refused(with_class, 16, "class token");
  FeatureConfig no_size = Tiles({{10, 10}});
  no_size.tile_size = 0;
  refused(no_size, 16, "no square");
  const PictureShape shape(Tiles({{10, 10}}), 16);
  EXPECT_THROW(shape.NumTokens({0, 5}), std::invalid_argument);
  EXPECT_THROW(shape.NumRows({}), std::invalid_argument);
}

TEST(PictureShapeTest, SidesOfAnyLengthDoNotOverflow) {
  const PictureShape shape(Tiles({{20, 10}, {10, 20}}), 16);
  EXPECT_EQ(shape.NumTokens({INT32_MAX, INT32_MAX}), 16 + 4 * 5);
  EXPECT_EQ(shape.NumTokens({INT32_MAX, 1}), 16);
}

}  // namespace
}  // namespace llava
