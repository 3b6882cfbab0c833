#include "model/image/image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/checkpoint/tensor_file.h"
#include "model/digest/sha256.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

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

Image ToImage(const at::Tensor& rgb) {  // [H, W, 3] uint8
  const auto* data = rgb.const_data_ptr<uint8_t>();
  return {static_cast<int>(rgb.size(1)), static_cast<int>(rgb.size(0)),
          std::vector<uint8_t>(data, data + rgb.numel())};
}

TEST(ImageTest, ResizesBitForBitAsPillow) {
  std::ifstream file(SourceDir() + "/tests/model/image/pillow_golden.json");
  const auto golden = nlohmann::json::parse(file);
  ASSERT_GE(golden["cases"].size(), 48u);
  for (const auto& one : golden["cases"]) {
    const Image resized = ResizeBicubic(Pixels(one["from"][0], one["from"][1], one["seed"]),
                                        one["to"][0], one["to"][1]);
    const std::string_view bytes(reinterpret_cast<const char*>(resized.rgb.data()),
                                 resized.rgb.size());
    EXPECT_EQ(ToHex(HashBytes(bytes)), one["sha256"].get<std::string>()) << one.dump();
  }
}

// Every picture of the fixtures, from its decoded pixels: 8-bit values exactly, pixel values 1e-6.
TEST(ImageTest, FitsAndNormalizesAsTheReference) {
  const auto expected = TensorFile::Open(FixturesDir() / "expected/images.safetensors");
  int pictures = 0;
  for (const auto& [name, info] : expected->tensors()) {
    if (!name.starts_with("rgb/")) continue;
    ++pictures;
    const std::string picture = name.substr(4);
    const Image image = ToImage(expected->Get(name));
    for (const auto& [mode, prefix] :
         {std::pair(ImageMode::kCrop, "crop"), std::pair(ImageMode::kPad, "pad")}) {
      const at::Tensor want_bytes = expected->Get(std::string(prefix) + "_u8/" + picture);
      const at::Tensor want_pixels = expected->Get(std::string(prefix) + "/" + picture);
      PreprocessConfig config;
      config.image_size = want_bytes.size(0);
      const Image fitted = FitToTower(image, mode, config);
      EXPECT_EQ(fitted.rgb, ToImage(want_bytes).rgb) << prefix << " " << picture;
      const std::vector<float> pixels = NormalizePixels(fitted, config);
      ASSERT_EQ(static_cast<int64_t>(pixels.size()), want_pixels.numel());
      const float* want = want_pixels.const_data_ptr<float>();
      for (size_t i = 0; i < pixels.size(); ++i) ASSERT_NEAR(pixels[i], want[i], 1e-6) << picture;
    }
  }
  EXPECT_GE(pictures, 10);
}

PreprocessConfig SideOf(int64_t size) {
  PreprocessConfig config;
  config.image_size = size;
  return config;
}

// A square of the longer side in the truncated mean colour, the picture in its middle.
Image PadToSquare(const Image& image) {
  const int side = std::max(image.width, image.height);
  Image square{side, side, {}};
  for (int i = 0; i < side * side; ++i) square.rgb.insert(square.rgb.end(), {122, 116, 104});
  const int left = (side - image.width) / 2, top = (side - image.height) / 2;
  for (int y = 0; y < image.height; ++y) {
    std::copy_n(&image.rgb[static_cast<size_t>(y) * image.width * 3], image.width * 3,
                &square.rgb[(static_cast<size_t>(top + y) * side + left) * 3]);
  }
  return square;
}

// FitToTower never builds the square canvas; it must not show.
TEST(ImageTest, PadsWithoutStoringTheCanvasAsIfItHad) {
  const PreprocessConfig config = SideOf(40);
  for (const auto& [width, height] : {std::pair(1, 90), std::pair(90, 1), std::pair(33, 34),
                                      std::pair(7, 7), std::pair(301, 12)}) {
    const Image image = Pixels(width, height, 5);
    const Image stored = FitToTower(PadToSquare(image), ImageMode::kCrop, config);
    EXPECT_EQ(FitToTower(image, ImageMode::kPad, config).rgb, stored.rgb) << width << "x" << height;
  }
}

TEST(ImageTest, CropsTheMiddleOfTheWholeResize) {
  const Image image = Pixels(91, 37, 8);
  const Image whole = ResizeBicubic(image, 20 * 91 / 37, 20);
  const Image crop = FitToTower(image, ImageMode::kCrop, SideOf(20));
  const int left = (whole.width - 20) / 2;
  for (int y = 0; y < 20; ++y) {
    EXPECT_EQ(std::memcmp(&crop.rgb[y * 60], &whole.rgb[(y * whole.width + left) * 3], 60), 0) << y;
  }
}

TEST(ImageTest, PadsWithTheTruncatedMeanColour) {
  const Image padded =
      FitToTower(Image{1, 3, std::vector<uint8_t>(9, 200)}, ImageMode::kPad, SideOf(3));
  ASSERT_EQ(padded.width, 3);
  EXPECT_EQ(padded.rgb[0], 122);
  EXPECT_EQ(padded.rgb[1], 116);
  EXPECT_EQ(padded.rgb[2], 104);
  EXPECT_EQ(padded.rgb[3], 200);
}

// A sliver of the largest allowed side would need gigabytes if canvas or full resize were stored.
TEST(ImageTest, SliversAreCheap) {
  PreprocessConfig config;
  for (const auto& [width, height] : {std::pair(1, 32768), std::pair(32768, 1)}) {
    const Image image = Pixels(width, height, 1);
    for (const ImageMode mode : {ImageMode::kCrop, ImageMode::kPad}) {
      EXPECT_EQ(FitToTower(image, mode, config).rgb.size(), 336u * 336 * 3);
    }
  }
}

TEST(ImageTest, RefusesWhatIsNoPicture) {
  EXPECT_THROW(ResizeBicubic(Image{}, 3, 3), std::invalid_argument);
  EXPECT_THROW(ResizeBicubic(Image{2, 2, std::vector<uint8_t>(11)}, 3, 3), std::invalid_argument);
  EXPECT_THROW(ResizeBicubic(Pixels(2, 2, 1), 0, 3), std::invalid_argument);
  EXPECT_THROW(NormalizePixels(Pixels(5, 5, 1), PreprocessConfig()), std::invalid_argument);
}

}  // namespace
}  // namespace llava
