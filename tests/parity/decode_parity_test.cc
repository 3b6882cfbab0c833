// Picture files to RGB, against "rgb/" of expected/images.safetensors. OpenCV decodes them: not of
// the model core alone.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/image/decode.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

TEST(DecodeParityTest, EveryFileOfTheFolder) {
  int pngs = 0, jpegs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(Folder().root() / "images")) {
    const std::string name = entry.path().filename().string();
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
    const Image image = DecodeImage(bytes);
    const at::Tensor found = at::tensor(image.rgb, at::kByte).view({image.height, image.width, 3});
    const at::Tensor expected = Folder().Tensors("images").Get("rgb/" + name);
    if (entry.path().extension() != ".png") {
      // Decoders of JPEG may round differently, and resizing can make two levels of one.
      EXPECT_TRUE(IsNear("rgb/" + name, found, expected));
      ++jpegs;
      continue;
    }
    EXPECT_TRUE(at::equal(found, expected)) << name;
    ++pngs;
    const PreprocessConfig& config = Folder().Tower("tiny-llava").config().preprocess;
    for (const auto& [mode, key] :
         {std::pair(ImageMode::kCrop, std::string("crop")), {ImageMode::kPad, "pad"}}) {
      const std::vector<float> pixels = NormalizePixels(FitToTower(image, mode, config), config);
      const at::Tensor stored = Folder().Tensors("images").Get(key + "/" + name);
      EXPECT_TRUE(IsNear(key + "/" + name, at::tensor(pixels).view(stored.sizes()), stored));
    }
  }
  EXPECT_GT(pngs, 0);
  EXPECT_GT(jpegs, 0);
}

}  // namespace
}  // namespace llava
