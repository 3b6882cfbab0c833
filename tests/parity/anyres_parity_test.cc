// Overview and tiles of LLaVA 1.6 through the tower, against anyres.safetensors (anyres_golden.py).

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/tensor_file.h"
#include "model/image/anyres.h"
#include "model/image/decode.h"
#include "model/nn/clip.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

TEST(AnyresParityTest, TilesGiveTheFeaturesOfTransformers) {
  const at::NoGradGuard guard;
  const std::filesystem::path fixtures = OwnFixturesDir();
  const auto golden = TensorFile::Open(SourceDir() + "/tests/parity/anyres.safetensors");
  const TowerCheckpoint checkpoint = OpenTower(fixtures / "clip-tower");
  const ClipTower tower(checkpoint.config, checkpoint.tensors, at::kCPU, at::kFloat);
  const PreprocessConfig& preprocess = checkpoint.config.preprocess;
  const at::Tensor stored = golden->Get("grid");
  std::vector<Resolution> grid;
  for (int64_t i = 0; i < stored.size(0); ++i) {
    grid.push_back({stored[i][0].item<int>(), stored[i][1].item<int>()});
  }
  for (const char* name : {"gray.png", "palette.png", "plain.png", "rgb16.png", "rgba.png",
                           "small_upscale.png", "tall_37x200.png"}) {
    std::ifstream file(fixtures / "images" / name, std::ios::binary);
    const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<at::Tensor> tiles;
    for (const Image& tile : AnyresTiles(DecodeImage(bytes), grid, preprocess)) {
      tiles.push_back(at::tensor(NormalizePixels(tile, preprocess))
                          .view({3, preprocess.image_size, preprocess.image_size}));
    }
    const at::Tensor found =
        tower.Features(at::stack(tiles), {.select_feature = SelectFeature::kPatch}).flatten(0, 1);
    const at::Tensor expected = golden->Get(name);
    ASSERT_EQ(found.sizes(), expected.sizes()) << name;
    EXPECT_LT((found - expected).abs().max().item<float>(), 1e-4) << name;
  }
}

}  // namespace
}  // namespace llava
