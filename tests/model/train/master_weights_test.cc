#include "model/train/master_weights.h"

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"
#include "tests/support/live_bytes.h"

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

// As a decoder whose head is its table of embeddings.
TEST_F(MasterWeightsTest, WhatIsTiedGetsTheNewCopyToo) {
  at::Tensor tied;
  MasterWeights weights(
      {[&](const ParameterVisitor& visit) {
        module_.Visit(visit);
        tied = module_.weight;
      }},
      MemoryTensors(values_), [](const std::string&) { return true; }, at::kBFloat16);
  {
    const at::NoGradGuard guard;
    weights.masters()[0].second.fill_(2);
  }
  weights.Bind();
  EXPECT_EQ(module_.weight[0][0].item<float>(), 2);
  EXPECT_TRUE(tied.is_same(module_.weight));
}

TEST_F(MasterWeightsTest, AGradientGoesHomeAsSoonAsThereIsOne) {
  MasterWeights weights = Masters("", at::kBFloat16);
  std::vector<std::string> order;
  const auto note = [&](const std::string& what) {
    return [&order, what](const at::Tensor&) { order.push_back(what); };
  };
  weights.masters()[0].second.register_hook(note("weight"));
  weights.masters()[2].second.register_hook(note("embedding"));
  at::Tensor x = at::matmul(module_.embed.to(at::kBFloat16), module_.weight);
  x.register_hook(note("behind the first product"));
  for (int i = 0; i < 3; ++i) {
    x = x.sin();
    x.register_hook(note("later"));
  }
  // Read last, its gradient is there first.
  (x.sum() + at::mul(module_.embed, 2).sum()).backward();
  EXPECT_THAT(order, testing::ElementsAre("later", "later", "later", "behind the first product",
                                          "weight", "embedding"));
}

// Two replicas, of which the second begins in the middle.
TEST_F(MasterWeightsTest, ThereIsNeverMoreThanOneCopyOfAModel) {
  constexpr int64_t kWidth = 64, kMatrices = 8, kMatrixBytes = kWidth * kWidth * 2;
  LiveBytes bytes;
  std::vector<std::map<std::string, at::Tensor>> modules(2);
  for (int64_t i = 0; i < kMatrices; ++i) {
    const std::string name = "weight" + std::to_string(i);
    values_[name] = at::ones({kWidth, kWidth});
    for (auto& module : modules) module[name] = at::ones({kWidth, kWidth}, at::kBFloat16);
  }
  std::vector<MasterWeights::Visit> visits;
  for (auto& module : modules) {
    visits.push_back([&module](const ParameterVisitor& visit) {
      for (auto& [name, parameter] : module) visit(name, parameter);
    });
  }
  MasterWeights weights(
      visits, MemoryTensors(values_), [](const std::string&) { return true; }, at::kBFloat16);
  for (int64_t replica = 0; replica < 2; ++replica) {
    {
      const at::NoGradGuard guard;
      for (const auto& [name, master] : weights.masters()) master.fill_(replica + 2);
    }
    const int64_t before = bytes.now();
    bytes.TakePeak();
    weights.Bind(replica);
    EXPECT_LT(bytes.TakePeak() - before, 2 * kMatrixBytes) << replica;
    EXPECT_EQ(bytes.now(), before);
    for (const auto& [name, parameter] : modules[replica]) {
      EXPECT_EQ(parameter[1][1].item<float>(), static_cast<float>(replica + 2)) << name;
    }
  }
}

TEST_F(MasterWeightsTest, WhatAFaultHasCutShortIsMadeUpForByTheNextBind) {
  bool fails = false;
  MasterWeights weights(
      {[&](const ParameterVisitor& visit) {
        visit("norm", module_.norm);
        visit("embed_tokens.weight", module_.embed);
        if (fails) throw std::runtime_error("no memory");
        visit("weight", module_.weight);
      }},
      MemoryTensors(values_), [](const std::string&) { return true; }, at::kBFloat16);
  {
    const at::NoGradGuard guard;
    for (const auto& [name, master] : weights.masters()) master.fill_(2);
  }
  fails = true;
  EXPECT_THROW(weights.Bind(), std::runtime_error);
  fails = false;
  weights.Bind();
  EXPECT_EQ(module_.weight[0][0].item<float>(), 2);
}

TEST_F(MasterWeightsTest, ReplicasHaveTheSameParameters) {
  Module other = module_;
  const auto both = [&](bool whole) {
    return std::vector<MasterWeights::Visit>{
        [this](const ParameterVisitor& visit) { module_.Visit(visit); },
        [&other, whole](const ParameterVisitor& visit) {
          visit("weight", other.weight);
          if (whole) visit("norm", other.norm);
          if (whole) visit("embed_tokens.weight", other.embed);
        }};
  };
  const auto all = [](const std::string&) { return true; };
  MasterWeights weights(both(true), MemoryTensors(values_), all, at::kBFloat16);
  EXPECT_FALSE(other.weight.is_same(module_.weight)) << "each has a copy of its own";
  EXPECT_TRUE(at::equal(other.weight, module_.weight));
  EXPECT_THROW(MasterWeights(both(false), MemoryTensors(values_), all, at::kBFloat16),
               std::invalid_argument);
}

}  // namespace
}  // namespace llava
