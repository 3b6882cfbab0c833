#include "model/train/master_weights.h"

#include <map>
#include <string>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

// Two parameters: a matrix, and a norm beside it.
struct Module {
  at::Tensor weight, norm, embed;
  void Visit(const ParameterVisitor& visit) {
    visit("weight", weight);
    visit("norm", norm);
    visit("embed_tokens.weight", embed);
  }
};

class MasterWeightsTest : public testing::Test {
 protected:
  MasterWeightsTest() {
    values_ = {{"weight", at::full({2, 2}, 1.001f)},
               {"norm", at::full({2}, 1.001f)},
               {"embed_tokens.weight", at::full({3, 2}, 1.001f)}};
    module_ = {at::ones({2, 2}, at::kBFloat16), at::ones({2}, at::kBFloat16),
               at::ones({3, 2}, at::kBFloat16)};
  }

  MasterWeights Masters(const std::string& frozen, at::ScalarType dtype) {
    return MasterWeights(
        {[this](const ParameterVisitor& visit) { module_.Visit(visit); }}, MemoryTensors(values_),
        [=](const std::string& name) { return name != frozen; }, dtype);
  }

  std::map<std::string, at::Tensor> values_;
  Module module_;
};

TEST_F(MasterWeightsTest, KeepsWhatSixteenBitsCannotHold) {
  MasterWeights weights = Masters("norm", at::kBFloat16);
  ASSERT_EQ(weights.masters().size(), 2u);
  EXPECT_EQ(weights.masters()[0].second[0][0].item<float>(), 1.001f);
  EXPECT_EQ(module_.weight.scalar_type(), at::kBFloat16);
  EXPECT_EQ(module_.embed.scalar_type(), at::kFloat) << "sums stay in float32";
  EXPECT_FALSE(module_.norm.requires_grad());
  EXPECT_TRUE(module_.weight.requires_grad());
}

TEST_F(MasterWeightsTest, GradientsReachTheMastersAndBindBringsTheirNewValues) {
  MasterWeights weights = Masters("", at::kBFloat16);
  (module_.weight.to(at::kFloat).sum() * 3 + module_.norm.sum()).backward();
  const at::Tensor& master = weights.masters()[0].second;
  ASSERT_TRUE(master.grad().defined());
  EXPECT_EQ(master.grad().scalar_type(), at::kFloat);
  EXPECT_EQ(master.grad()[1][1].item<float>(), 3);
  {
    const at::NoGradGuard guard;
    master.fill_(2);
  }
  EXPECT_EQ(module_.weight[0][0].item<float>(), 1) << "not yet";
  weights.Bind();
  EXPECT_EQ(module_.weight[0][0].item<float>(), 2);
}

TEST_F(MasterWeightsTest, InFloat32TheModuleHoldsTheMastersThemselves) {
  MasterWeights weights = Masters("", at::kFloat);
  EXPECT_TRUE(module_.weight.is_same(weights.masters()[0].second));
}

}  // namespace
}  // namespace llava
