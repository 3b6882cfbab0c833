#include "model/nn/clip.h"

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

at::Tensor Pixels(int64_t batch) {
  return at::randn({batch, 3, 12, 12}, at::make_generator<at::CPUGeneratorImpl>(8), at::kFloat);
}

ClipTower MakeTower(at::ScalarType dtype = at::kFloat) {
  const VisionConfig config = TinyTowerConfig();
  return ClipTower(config, MemoryTensors(RandomTower(config)), at::kCPU, dtype);
}

TEST(ClipTowerTest, FirstHiddenStateIsTheNormedEmbeddingOfAConvolution) {
  const VisionConfig config = TinyTowerConfig();
  const auto weights = RandomTower(config);
  const at::Tensor pixels = Pixels(2);
  const at::Tensor patches =
      at::conv2d(pixels, weights.at("vision_model.embeddings.patch_embedding.weight"), std::nullopt,
                 /*stride=*/4)
          .flatten(2)
          .transpose(1, 2);
  const at::Tensor first = weights.at("vision_model.embeddings.class_embedding").expand({2, 1, 24});
  const at::Tensor expected =
      at::layer_norm(at::cat({first, patches}, 1) +
                         weights.at("vision_model.embeddings.position_embedding.weight"),
                     {24}, weights.at("vision_model.pre_layrnorm.weight"),
                     weights.at("vision_model.pre_layrnorm.bias"), 1e-5);
  EXPECT_LT(MaxDifference(MakeTower().Forward(pixels, 0), expected), 1e-5);
}

TEST(ClipTowerTest, NegativeLayersCountFromTheEnd) {
  const ClipTower tower = MakeTower();
  const at::Tensor pixels = Pixels(1);
  for (int64_t layer = 0; layer <= 3; ++layer) {
    EXPECT_TRUE(at::equal(tower.Forward(pixels, layer), tower.Forward(pixels, layer - 4)));
  }
  EXPECT_FALSE(at::equal(tower.Forward(pixels, 2), tower.Forward(pixels, 3)));
  EXPECT_THROW(tower.Forward(pixels, 4), std::invalid_argument);
  EXPECT_THROW(tower.Forward(pixels, -5), std::invalid_argument);
}

TEST(ClipTowerTest, FeaturesKeepOrDropTheClassToken) {
  const ClipTower tower = MakeTower();
  const at::Tensor pixels = Pixels(2);
  const at::Tensor with =
      tower.Features(pixels, {.select_layer = -2, .select_feature = SelectFeature::kClsPatch});
  const at::Tensor without =
      tower.Features(pixels, {.select_layer = -2, .select_feature = SelectFeature::kPatch});
  EXPECT_EQ(with.sizes(), (at::IntArrayRef{2, 10, 24}));
  EXPECT_EQ(without.sizes(), (at::IntArrayRef{2, 9, 24}));
  EXPECT_TRUE(at::equal(with.narrow(1, 1, 9), without));
  EXPECT_TRUE(at::equal(with, tower.Forward(pixels, 2)));
}

TEST(ClipTowerTest, PicturesOfABatchDoNotSeeEachOther) {
  const ClipTower tower = MakeTower();
  const at::Tensor pixels = Pixels(3);
  const at::Tensor out = tower.Forward(pixels, -1);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_LT(MaxDifference(out[i], tower.Forward(pixels.narrow(0, i, 1), -1)[0]), 1e-5);
  }
}

TEST(ClipTowerTest, IsNearInLowerPrecision) {
  const at::Tensor expected = MakeTower().Forward(Pixels(2), -2);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const at::Tensor out = MakeTower(dtype).Forward(Pixels(2), -2);
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_LT(MaxDifference(out, expected), dtype == at::kHalf ? 0.03 : 0.25);
  }
}

TEST(ClipTowerTest, TellsBothShapesOfWrongPixels) {
  try {
    MakeTower().Forward(at::zeros({1, 3, 12, 13}), 0);
    FAIL() << "misshapen pixels were taken";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("[1, 3, 12, 13]"));
    EXPECT_THAT(error.what(), testing::HasSubstr("[B, 3, 12, 12]"));
  }
}

TEST(ClipTowerTest, GivesAllHiddenStatesInOnePass) {
  const ClipTower tower = MakeTower();
  const at::Tensor pixels = Pixels(2);
  std::vector<at::Tensor> states;
  const at::Tensor last = tower.Forward(pixels, -1, &states);
  ASSERT_EQ(states.size(), 3);
  for (int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_TRUE(at::equal(states[layer], tower.Forward(pixels, layer))) << layer;
  }
  EXPECT_TRUE(at::equal(last, tower.Forward(pixels, 3)));
}

TEST(ClipTowerTest, ClassFeaturesNeedAPostNorm) {
  const at::Tensor last = MakeTower().Forward(Pixels(2), -1);
  EXPECT_THROW(MakeTower().ClassFeature(last), std::logic_error);

  const VisionConfig config = TinyTowerConfig();
  auto tensors = RandomTower(config);
  tensors["vision_model.post_layernorm.weight"] = at::full({24}, 2.0);
  tensors["vision_model.post_layernorm.bias"] = at::full({24}, 0.5);
  const ClipTower tower(config, MemoryTensors(tensors), at::kCPU, at::kFloat);
  const at::Tensor expected =
      2 * at::layer_norm(last.select(1, 0), {24}, std::nullopt, std::nullopt, 1e-5) + 0.5;
  EXPECT_LT(MaxDifference(tower.ClassFeature(last), expected), 1e-5);
}

TEST(ClipTowerTest, VisitsEveryTensorUnderItsName) {
  const VisionConfig config = TinyTowerConfig();
  auto tensors = RandomTower(config);
  tensors["vision_model.post_layernorm.weight"] = at::ones({24});
  tensors["vision_model.post_layernorm.bias"] = at::zeros({24});
  ClipTower tower(config, MemoryTensors(tensors), at::kCPU, at::kFloat);
  size_t visited = 0;
  tower.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
    ASSERT_TRUE(tensors.contains(name)) << name;
    EXPECT_TRUE(at::equal(parameter, tensors.at(name))) << name;
    ++visited;
  });
  EXPECT_EQ(visited, tensors.size());
}

TEST(ClipTowerTest, ComputesWithWhatAVisitorPutsIn) {
  const VisionConfig config = TinyTowerConfig();
  const auto other = RandomTower(config, /*seed=*/9);
  ClipTower tower = MakeTower();
  std::vector<std::pair<std::string, at::Tensor>> leaves;
  tower.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
    leaves.emplace_back(name, other.at(name).clone().requires_grad_());
    parameter = leaves.back().second;
  });
  const at::Tensor pixels = Pixels(2);
  const at::Tensor out = tower.Forward(pixels, -1);
  const ClipTower expected(config, MemoryTensors(other), at::kCPU, at::kFloat);
  EXPECT_TRUE(at::equal(out, expected.Forward(pixels, -1)));
  out.square().sum().backward();
  for (const auto& [name, leaf] : leaves) {
    ASSERT_TRUE(leaf.grad().defined()) << name;
    // Softmax does not care what is added to all keys.
    if (name.ends_with("k_proj.bias")) continue;
    EXPECT_GT(leaf.grad().abs().sum().item<double>(), 0) << name;
  }
  // The parts of a joined matrix have gradients of their own: no two alike.
  EXPECT_FALSE(at::equal(leaves[9].second.grad(), leaves[10].second.grad()));
}

TEST(ClipTowerTest, NamesWhatIsMissing) {
  const VisionConfig config = TinyTowerConfig();
  auto tensors = RandomTower(config);
  tensors.erase("vision_model.encoder.layers.2.self_attn.k_proj.bias");
  tensors.erase("vision_model.pre_layrnorm.bias");
  try {
    ClipTower(config, MemoryTensors(tensors), at::kCPU, at::kFloat);
    FAIL() << "a broken checkpoint was taken";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("layers.2.self_attn.k_proj.bias"));
    EXPECT_THAT(error.what(), testing::HasSubstr("pre_layrnorm.bias"));
  }
}

}  // namespace
}  // namespace llava
