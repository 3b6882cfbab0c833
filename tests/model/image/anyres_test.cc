#include "model/image/anyres.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

#include "model/config/picture_shape.h"
#include "model/digest/sha256.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

// The generator of pillow_golden.py.
Image Pixels(int width, int height, uint32_t seed) {
  Image image{width, height, std::vector<uint8_t>(static_cast<size_t>(width) * height * 3)};
  uint32_t state = seed;
  for (uint8_t& value : image.rgb) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<uint8_t>(state >> 24);
    if (seed % 3 == 0) value = value < 128 ? 0 : 255;
  }
  return image;
}

TEST(AnyresTest, TilesAreThoseOfPillow) {
  std::ifstream file(SourceDir() + "/tests/model/image/anyres_golden.json");
  const auto golden = nlohmann::json::parse(file);
  std::vector<Resolution> candidates;
  for (const auto& one : golden["candidates"]) candidates.push_back({one[0], one[1]});
  PreprocessConfig config;
  config.image_size = golden["size"];
  ASSERT_GE(golden["cases"].size(), 24u);
  for (const auto& one : golden["cases"]) {
    const Image image = Pixels(one["from"][0], one["from"][1], one["seed"]);
    EXPECT_EQ(ChooseResolution({image.width, image.height}, candidates),
              (Resolution{one["canvas"][0], one["canvas"][1]}))
        << one.dump();
    const std::vector<Image> tiles = AnyresTiles(image, candidates, config);
    EXPECT_EQ(tiles.size(), one["tiles"].get<size_t>());
    std::string bytes;
    for (const Image& tile : tiles) {
      EXPECT_EQ(tile.width, config.image_size);
      EXPECT_EQ(tile.height, config.image_size);
      bytes.append(tile.rgb.begin(), tile.rgb.end());
    }
    EXPECT_EQ(ToHex(HashBytes(bytes)), one["sha256"].get<std::string>()) << one.dump();
  }
}

TEST(AnyresTest, PublishedResolutions) {
  const std::vector<Resolution> candidates = {
      {336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
  EXPECT_EQ(ChooseResolution({1000, 1000}, candidates), (Resolution{672, 672}));
  EXPECT_EQ(ChooseResolution({1920, 600}, candidates), (Resolution{1008, 336}));
  EXPECT_EQ(ChooseResolution({600, 1920}, candidates), (Resolution{336, 1008}));
  // All keep every pixel of a small picture: the first of the smallest.
  EXPECT_EQ(ChooseResolution({100, 100}, candidates), (Resolution{336, 672}));
}

TEST(AnyresTest, RefusesWhatCannotBe) {
  const Image image = Pixels(10, 10, 1);
  const std::vector<Resolution> odd = {{336, 700}};
  EXPECT_THAT([&] { AnyresTiles(image, odd, {}); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("336 x 700")));
  EXPECT_THROW(AnyresTiles(image, {}, {}), std::invalid_argument);
  EXPECT_THROW(ChooseResolution({0, 5}, odd), std::invalid_argument);
}

}  // namespace
}  // namespace llava
