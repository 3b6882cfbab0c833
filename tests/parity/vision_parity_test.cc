// expected/vision.safetensors: tower and both projectors, from the pixel values stored there.

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/nn/packed_clip.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

std::set<std::string> Images() {
  std::set<std::string> images;
  for (const auto& [name, info] : Folder().Tensors("vision").tensors()) {
    images.insert(name.substr(0, name.rfind('/')));
  }
  return images;
}

bool Has(const std::string& name) { return Folder().Tensors("vision").tensors().contains(name); }

TEST(VisionParityTest, FeaturesAndProjections) {
  at::NoGradGuard guard;
  const Llava& model = Folder().Language("tiny-llava");
  LanguageCheckpoint linear = Folder().OpenLanguage("orig-f32");
  OverlayProjector(linear, Folder().root() / "stage1-linear");
  const Llava linear_model(linear, Folder().device(), at::kFloat);
  ASSERT_EQ(linear_model.config().projector.depth, 1);
  FeatureConfig with_class = model.config().features;
  with_class.select_feature = SelectFeature::kClsPatch;

  ASSERT_FALSE(Images().empty());
  for (const std::string& image : Images()) {
    const at::Tensor pixels = Folder().Expected("vision", image + "/pixel_values").unsqueeze(0);
    const ClipTower& tower = Folder().Tower("tiny-llava");
    EXPECT_TRUE(IsNear(image + "/hidden_select_with_cls", tower.Features(pixels, with_class)[0],
                       Folder().Expected("vision", image + "/hidden_select_with_cls")));
    const at::Tensor features = tower.Features(pixels, model.config().features)[0];
    EXPECT_TRUE(IsNear(image + "/projected", model.projector().Forward(features),
                       Folder().Expected("vision", image + "/projected")));
    EXPECT_TRUE(IsNear(image + "/projected_linear", linear_model.projector().Forward(features),
                       Folder().Expected("vision", image + "/projected_linear")));
  }
}

TEST(VisionParityTest, EveryHiddenState) {
  at::NoGradGuard guard;
  const ClipTower& tower = Folder().Tower("tiny-llava");
  int checked = 0;
  for (const std::string& image : Images()) {
    if (!Has(image + "/hidden_0")) continue;
    const at::Tensor pixels = Folder().Expected("vision", image + "/pixel_values").unsqueeze(0);
    for (int64_t layer = 0; layer <= tower.config().num_layers; ++layer, ++checked) {
      const std::string name = image + "/hidden_" + std::to_string(layer);
      EXPECT_TRUE(IsNear(name, tower.Forward(pixels, layer)[0], Folder().Expected("vision", name)));
    }
    EXPECT_FALSE(Has(image + "/hidden_" + std::to_string(tower.config().num_layers + 1)));
  }
  EXPECT_GT(checked, 1);
}

// The service's tower on the CPU keeps the direction of every row.
TEST(VisionParityTest, PackedTowersKeepDirections) {
  at::NoGradGuard guard;
  const TowerCheckpoint checkpoint = OpenTower(Folder().root() / "clip-tower");
  const ClipTower plain(checkpoint.config, checkpoint.tensors, at::kCPU, at::kFloat);
  std::vector<at::Tensor> pixels;
  for (const std::string& image : Images()) {
    pixels.push_back(Folder().Expected("vision", image + "/pixel_values").cpu());
  }
  const at::Tensor batch = at::stack(pixels);
  const at::Tensor expected = plain.Forward(batch, -2).to(at::kDouble);
  for (const auto format : {ops::cpu::WeightFormat::kBFloat16, ops::cpu::WeightFormat::kInt8}) {
    const auto pool = std::make_shared<ops::cpu::ThreadPool>(2);
    PackedClipTower packed(
        std::make_shared<PackedClipWeights>(checkpoint.config, checkpoint.tensors, format, *pool),
        pool);
    const at::Tensor found = packed.Forward(batch, -2).to(at::kDouble);
    EXPECT_GT(at::cosine_similarity(found, expected, -1).min().item<double>(), 0.99);
  }
}

TEST(VisionParityTest, PicturesOfABatchDoNotMatterToEachOther) {
  at::NoGradGuard guard;
  std::vector<at::Tensor> pixels;
  for (const std::string& image : Images()) {
    pixels.push_back(Folder().Expected("vision", image + "/pixel_values"));
  }
  const at::Tensor features =
      Folder()
          .Tower("tiny-llava")
          .Features(at::stack(pixels), {.select_feature = SelectFeature::kClsPatch});
  int64_t row = 0;
  for (const std::string& image : Images()) {
    EXPECT_TRUE(IsNear(image + "/hidden_select_with_cls", features[row++],
                       Folder().Expected("vision", image + "/hidden_select_with_cls")));
  }
}

}  // namespace
}  // namespace llava
