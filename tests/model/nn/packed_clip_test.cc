// The tower with packed weights beside the plain one, by every instruction set of this processor.
#include "model/nn/packed_clip.h"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/nn/clip.h"
#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

using ops::cpu::ThreadPool;
using ops::cpu::WeightFormat;
using testing::HasSubstr;
using testing::ThrowsMessage;

const WeightFormat kFormats[] = {WeightFormat::kFloat, WeightFormat::kBFloat16,
                                 WeightFormat::kInt8};

at::Tensor Pixels(const VisionConfig& config, int64_t batch) {
  return at::randn({batch, config.num_channels, config.image_size, config.image_size},
                   at::make_generator<at::CPUGeneratorImpl>(8), at::kFloat);
}

PackedClipTower Packed(const VisionConfig& config, WeightFormat format, int threads = 2,
                       const ops::cpu::Kernels& kernels = ops::cpu::Best()) {
  const auto pool = std::make_shared<ThreadPool>(threads);
  return PackedClipTower(std::make_shared<PackedClipWeights>(
                             config, MemoryTensors(RandomTower(config)), format, *pool),
                         pool, kernels);
}

ClipTower Plain(const VisionConfig& config) {
  return ClipTower(config, MemoryTensors(RandomTower(config)), at::kCPU, at::kFloat);
}

double SmallestCosine(const at::Tensor& a, const at::Tensor& b) {
  return at::cosine_similarity(a.to(at::kDouble), b.to(at::kDouble), -1).min().item<double>();
}

// Heads of 64 and rows of weights longer than a group, as in real towers, with some large weights.
VisionConfig Deeper() {
  VisionConfig config;
  config.hidden_size = 192;
  config.intermediate_size = 768;
  config.num_layers = 6;
  config.num_heads = 3;
  config.image_size = config.preprocess.image_size = 140;
  return config;
}

TEST(PackedClipTest, IsNearThePlainTower) {
  const at::NoGradGuard guard;
  for (const Activation activation : {Activation::kQuickGelu, Activation::kGelu}) {
    VisionConfig config = TinyTowerConfig();
    config.activation = activation;
    const at::Tensor pixels = Pixels(config, 3);
    const ClipTower plain = Plain(config);
    for (const ops::cpu::Kernels& kernels : ops::cpu::Available()) {
      for (const WeightFormat format : kFormats) {
        PackedClipTower packed = Packed(config, format, 2, kernels);
        for (const int64_t layer : {0, 1, 3, -2}) {
          const at::Tensor expected = plain.Forward(pixels, layer);
          const at::Tensor found = packed.Forward(pixels, layer);
          ASSERT_EQ(found.sizes(), expected.sizes());
          if (format == WeightFormat::kFloat) {
            EXPECT_LT(MaxDifference(found, expected), 2e-5) << kernels.name << " " << layer;
          } else {
            EXPECT_GT(SmallestCosine(found, expected), 0.99) << kernels.name << " " << layer;
          }
        }
      }
    }
  }
}

TEST(PackedClipTest, KeepsDirectionsThroughManyBlocks) {
  const at::NoGradGuard guard;
  const VisionConfig config = Deeper();
  auto tensors = RandomTower(config);
  // Trained weights have a few that stand out.
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  for (auto& [name, tensor] : tensors) {
    if (tensor.dim() != 2 || name.find("position") != std::string::npos) continue;
    tensor =
        at::where(at::rand(tensor.sizes(), generator, at::kFloat) < 0.0005, tensor * 10, tensor);
  }
  const TensorSource source = MemoryTensors(tensors);
  const at::Tensor pixels = Pixels(config, 2);
  const at::Tensor expected = ClipTower(config, source, at::kCPU, at::kFloat).Forward(pixels, -2);
  for (const ops::cpu::Kernels& kernels : ops::cpu::Available()) {
    for (const WeightFormat format : kFormats) {
      const auto pool = std::make_shared<ThreadPool>(2);
      PackedClipTower packed(std::make_shared<PackedClipWeights>(config, source, format, *pool),
                             pool, kernels);
      EXPECT_GT(SmallestCosine(packed.Forward(pixels, -2), expected),
                format == WeightFormat::kInt8       ? 0.995
                : format == WeightFormat::kBFloat16 ? 0.999
                                                    : 0.9999999)
          << kernels.name;
    }
  }
}

TEST(PackedClipTest, APictureIsTheSameInAnyCompany) {
  const at::NoGradGuard guard;
  const VisionConfig config = Deeper();
  const at::Tensor pixels = Pixels(config, 4);
  for (const WeightFormat format : kFormats) {
    PackedClipTower alone = Packed(config, format, 1), three = Packed(config, format, 3);
    const at::Tensor all = three.Features(pixels, {});
    for (int64_t i = 0; i < 4; ++i) {
      const at::Tensor one = alone.Features(pixels.narrow(0, i, 1), {});
      EXPECT_EQ(0, std::memcmp(one.const_data_ptr(), all[i].const_data_ptr(), one.nbytes())) << i;
    }
  }
}

// One copy of the weights under several towers, each on a thread of its own.
TEST(PackedClipTest, TowersShareWeights) {
  const at::NoGradGuard guard;
  const VisionConfig config = Deeper();
  const at::Tensor pixels = Pixels(config, 1);
  const auto pool = std::make_shared<ThreadPool>(2);
  const auto weights = std::make_shared<PackedClipWeights>(
      config, MemoryTensors(RandomTower(config)), WeightFormat::kInt8, *pool);
  const at::Tensor expected = PackedClipTower(weights, pool).Features(pixels, {});
  std::vector<at::Tensor> found(3);
  std::vector<std::thread> threads;
  for (at::Tensor& result : found) {
    threads.emplace_back([&] {
      const at::NoGradGuard no_grad;
      PackedClipTower tower(weights, std::make_shared<ThreadPool>(1));
      for (int i = 0; i < 5; ++i) result = tower.Features(pixels, {});
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const at::Tensor& result : found) EXPECT_TRUE(at::equal(result, expected));
}

TEST(PackedClipTest, FeaturesAreRowsOfTheHiddenState) {
  const at::NoGradGuard guard;
  const VisionConfig config = TinyTowerConfig();
  PackedClipTower packed = Packed(config, WeightFormat::kBFloat16);
  const at::Tensor pixels = Pixels(config, 2);
  FeatureConfig features{.select_layer = 2, .select_feature = SelectFeature::kClsPatch};
  const at::Tensor with = packed.Features(pixels, features);
  EXPECT_EQ(with.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(with, packed.Forward(pixels, 2).to(at::kBFloat16)));
  features.select_feature = SelectFeature::kPatch;
  EXPECT_TRUE(at::equal(packed.Features(pixels, features), with.narrow(1, 1, 9)));
}

TEST(PackedClipTest, SaysWhatDoesNotFit) {
  const at::NoGradGuard guard;
  const VisionConfig config = TinyTowerConfig();
  PackedClipTower packed = Packed(config, WeightFormat::kInt8);
  EXPECT_THROW(packed.Forward(Pixels(config, 1), 4), std::invalid_argument);
  EXPECT_THROW(packed.Forward(Pixels(config, 1), -5), std::invalid_argument);
  EXPECT_THAT(
      [&] {
        packed.Forward(at::zeros({1, 3, 12, 13}), 0);
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("[1, 3, 12, 13]")));
  EXPECT_THROW(Packed(config, WeightFormat::kInt4), std::invalid_argument);
  auto tensors = RandomTower(config);
  tensors.erase("vision_model.encoder.layers.1.self_attn.k_proj.bias");
  tensors["vision_model.encoder.layers.1.mlp.fc1.weight"] = at::zeros({2, 3});
  EXPECT_THAT(
      [&] {
        ThreadPool pool(1);
        PackedClipWeights(config, MemoryTensors(tensors), WeightFormat::kBFloat16, pool);
      },
      ThrowsMessage<std::runtime_error>(testing::AllOf(HasSubstr("layers.1.self_attn.k_proj.bias"),
                                                       HasSubstr("layers.1.mlp.fc1.weight"))));
}

}  // namespace
}  // namespace llava
