// expected/images.safetensors from the decoded pixels: resizing, cropping, padding, normalisation.

#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/image/image.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

const FixtureFolder& Folder() { return FixtureFolder::Get(); }
at::Tensor Stored(const std::string& name) { return Folder().Tensors("images").Get(name); }

Image ToImage(const at::Tensor& rgb) {
  const at::Tensor pixels = rgb.contiguous();
  return {
      .width = static_cast<int>(rgb.size(1)),
      .height = static_cast<int>(rgb.size(0)),
      .rgb = {pixels.const_data_ptr<uint8_t>(), pixels.const_data_ptr<uint8_t>() + rgb.numel()}};
}

at::Tensor ToTensor(const Image& image) {
  return at::tensor(image.rgb, at::kByte).view({image.height, image.width, 3});
}

TEST(ImagesParityTest, EveryVariantInBothModes) {
  const PreprocessConfig& config = Folder().Tower("tiny-llava").config().preprocess;
  const int64_t side = config.image_size;
  ASSERT_FALSE(Folder().Json("images").empty());
  for (const auto& [name, info] : Folder().Json("images").items()) {
    const Image image = ToImage(Stored("rgb/" + name));
    EXPECT_EQ(info.at("size"), nlohmann::json({image.width, image.height})) << name;
    for (const auto& [mode, key] :
         {std::pair(ImageMode::kCrop, std::string("crop")), {ImageMode::kPad, "pad"}}) {
      const Image fitted = FitToTower(image, mode, config);
      // Bit for bit: the same pixels went in.
      EXPECT_TRUE(at::equal(ToTensor(fitted), Stored(key + "_u8/" + name))) << key << " " << name;
      const std::vector<float> pixels = NormalizePixels(fitted, config);
      const at::Tensor found = at::tensor(pixels).view({3, side, side});
      EXPECT_TRUE(IsNear(key + "/" + name, found, Stored(key + "/" + name)));
      EXPECT_TRUE(at::allclose(found, Stored(key + "/" + name), 0, 2e-6)) << key << " " << name;
    }
  }
}

}  // namespace
}  // namespace llava
