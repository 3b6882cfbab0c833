#include "model/llava/self_test.h"

#include <cmath>
#include <filesystem>
#include <stdexcept>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/memory_tensors.h"
#include "model/llava/serving_model.h"
#include "model/text/labels.h"
#include "tests/model/llava/tiny_llava.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::ThrowsMessage;

const std::vector<int32_t> kIds = {1, 20, kImageToken, 21, 22, 23, 24, 2};
// The second turn's answer, 23 and 24, is the model's; what stands before it is not.
const std::vector<int64_t> kLabels = {kIgnoreLabel, kIgnoreLabel, kIgnoreLabel, kIgnoreLabel,
                                      kIgnoreLabel, 23,           24,           kIgnoreLabel};

LanguageCheckpoint Tested() {
  LanguageCheckpoint checkpoint = TinyLanguageCheckpoint();
  checkpoint.self_test = MakeSelfTest(checkpoint, kIds, kLabels, {TinyFeatures(1)});
  return checkpoint;
}

// The same with one weight changed by as much as a broken file would.
void Spoil(TensorSource& tensors, const std::string& name) {
  at::Tensor weight = tensors.Get(name).clone();
  weight.flatten()[0] += 50;
  ReplaceTensors(tensors, {{name, weight}});
}

TEST(SelfTestTest, HoldsTheLogProbabilitiesOfTheAnswer) {
  const LanguageCheckpoint checkpoint = Tested();
  const at::Tensor stored = checkpoint.self_test->tensors.at("log_probabilities");
  // Written out: one forward pass, the row before each id of the answer.
  const Llava model(checkpoint, at::kCPU, at::kFloat);
  const at::Tensor features = TinyFeatures(1);
  const at::NoGradGuard guard;
  const at::Tensor prompt = model.Embed(kIds, {&features, 1});
  const Segment segment{.tokens = prompt.size(0)};
  const at::Tensor logits = model.decoder().Logits(model.decoder().Forward(prompt, {&segment, 1}));
  ASSERT_EQ(stored.sizes(), at::IntArrayRef{2});
  for (int64_t i = 0; i < 2; ++i) {  // 23 stands third from the end
    const at::Tensor row = logits[prompt.size(0) - 4 + i].log_softmax(-1);
    EXPECT_NEAR(stored[i].item<double>(), row[23 + i].item<double>(), 1e-5);
  }
}

TEST(SelfTestTest, PassesInEveryArithmetic) {
  const LanguageCheckpoint checkpoint = Tested();
  EXPECT_LT(CheckSelfTest(Llava(checkpoint, at::kCPU, at::kFloat), *checkpoint.self_test), 1e-5);
  EXPECT_LT(CheckSelfTest(Llava(checkpoint, at::kCPU, at::kBFloat16), *checkpoint.self_test),
            checkpoint.self_test->tolerances.at("bfloat16"));
}

// Where rows come in groups, the error of packed weights is measured when the test is made.
TEST(SelfTestTest, MeasuresPackedWeights) {
  LanguageCheckpoint shipped = OpenLanguage(fs::path(SourceDir()) / "deploy/models/emoji");
  const SelfTest test =
      MakeSelfTest(shipped, std::vector<int32_t>{1, kImageToken, 300, 301, 302},
                   std::vector<int64_t>{-100, -100, -100, 301, 302}, {at::ones({36, 160})});
  for (const char* type : {"int8", "int4"}) {
    ServingOptions options;
    options.weights = ParseWeightType(type);
    options.kv_bytes = 16 << 20;
    ServingModel model(shipped, at::kCPU, options);
    ASSERT_TRUE(test.tolerances.contains(type));
    const double off = CheckSelfTest(model, test);
    EXPECT_GT(off, 0);
    EXPECT_LE(off * 3, test.tolerances.at(type)) << type;
  }
}

// One that exists in no other form is its own reference.
TEST(SelfTestTest, OfAPackedModel) {
  const LanguageCheckpoint shipped = OpenLanguage(fs::path(SourceDir()) / "deploy/models/emoji");
  ServingOptions options;
  options.weights = WeightType::kInt8;
  options.kv_bytes = 16 << 20;
  const std::vector<int32_t> ids = {1, 300, 301, 302};
  const std::vector<int64_t> labels = {-100, -100, 301, 302};
  ServingModel model(shipped, at::kCPU, options);
  const SelfTest test = MakeSelfTest(model, ids, labels, {});
  EXPECT_EQ(CheckSelfTest(model, test), 0);
  LanguageCheckpoint spoilt = shipped;
  Spoil(spoilt.tensors, "model.norm.weight");
  ServingModel other(spoilt, at::kCPU, options);
  EXPECT_THAT([&] { CheckSelfTest(other, test); },
              ThrowsMessage<std::runtime_error>(HasSubstr("the self-test fails")));
}

TEST(SelfTestTest, FailsForOtherWeightsInEveryPart) {
  for (const char* name : {"model.layers.0.mlp.down_proj.weight", "model.mm_projector.0.weight",
                           "model.norm.weight"}) {
    LanguageCheckpoint checkpoint = Tested();
    Spoil(checkpoint.tensors, name);
    const Llava model(checkpoint, at::kCPU, at::kFloat);
    EXPECT_THAT([&] { CheckSelfTest(model, *checkpoint.self_test); },
                ThrowsMessage<std::runtime_error>(HasSubstr("the self-test fails")))
        << name;
  }
}

TEST(SelfTestTest, FailsForWeightsThatAreNoNumbers) {
  LanguageCheckpoint checkpoint = Tested();
  ReplaceTensors(
      checkpoint.tensors,
      {{"model.norm.weight", at::full_like(checkpoint.tensors.Get("model.norm.weight"), NAN)}});
  EXPECT_THROW(CheckSelfTest(Llava(checkpoint, at::kCPU, at::kFloat), *checkpoint.self_test),
               std::runtime_error);
}

TEST(SelfTestTest, RefusesAnExampleWithoutAnAnswer) {
  const LanguageCheckpoint checkpoint = TinyLanguageCheckpoint();
  const std::vector<int64_t> none(kIds.size(), kIgnoreLabel), fewer(2, 20);
  EXPECT_THROW(MakeSelfTest(checkpoint, kIds, none, {TinyFeatures(1)}), std::invalid_argument);
  EXPECT_THROW(MakeSelfTest(checkpoint, kIds, fewer, {TinyFeatures(1)}), std::invalid_argument);
}

TEST(SelfTestTest, TravelsWithThePublishedVersion) {
  const TempFolder root;
  LanguageCheckpoint shipped = OpenLanguage(fs::path(SourceDir()) / "deploy/models/emoji");
  shipped.self_test =
      MakeSelfTest(shipped, std::vector<int32_t>{1, kImageToken, 300, 301, 302},
                   std::vector<int64_t>{-100, -100, -100, 301, 302}, {at::ones({36, 160})});
  const fs::path folder = PublishLanguage(shipped, root.path(), "emoji");
  EXPECT_TRUE(fs::exists(folder / "self_test.safetensors"));
  const LanguageCheckpoint opened = OpenLanguage(folder);
  ASSERT_TRUE(opened.self_test);
  EXPECT_EQ(opened.self_test->tolerances, shipped.self_test->tolerances);
  EXPECT_LT(CheckSelfTest(Llava(opened, at::kCPU, at::kFloat), *opened.self_test), 1e-5);
  // One whose file is gone is no whole version any more.
  fs::remove(folder / "self_test.safetensors");
  EXPECT_THROW(OpenLanguage(folder), std::runtime_error);
}

TEST(SelfTestTest, TellsWhatIsMissing) {
  LanguageCheckpoint checkpoint = Tested();
  const Llava model(checkpoint, at::kCPU, at::kFloat);
  SelfTest test = *checkpoint.self_test;
  test.tolerances.erase("float32");
  EXPECT_THAT([&] { CheckSelfTest(model, test); },
              ThrowsMessage<std::runtime_error>(HasSubstr("float32")));
  test = *checkpoint.self_test;
  test.tensors.erase("ids");
  EXPECT_THAT([&] { CheckSelfTest(model, test); },
              ThrowsMessage<std::runtime_error>(HasSubstr("\"ids\"")));
}

TEST(SelfTestTest, OfATower) {
  TowerCheckpoint tower;
  tower.config = TinyTowerConfig();
  tower.tensors = MemoryTensors(RandomTower(tower.config));
  const int64_t side = tower.config.image_size;
  const at::Tensor picture = at::randint(0, 256, {side, side, 3}, at::kByte);
  const SelfTest test = MakeSelfTest(tower, picture, -2);
  const auto check = [&](at::ScalarType dtype) {
    return CheckSelfTest(ClipTower(tower.config, tower.tensors, at::kCPU, dtype), test);
  };
  EXPECT_LT(check(at::kFloat), 1e-6);
  EXPECT_LT(check(at::kBFloat16), test.tolerances.at("bfloat16"));
  Spoil(tower.tensors, "vision_model.pre_layrnorm.weight");
  EXPECT_THAT([&] { check(at::kFloat); },
              ThrowsMessage<std::runtime_error>(HasSubstr("the self-test fails")));
}

}  // namespace
}  // namespace llava
