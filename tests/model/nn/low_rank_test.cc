#include "model/nn/low_rank.h"

#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/nn/llama.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/support/live_bytes.h"

namespace llava {
namespace {

class LowRankTest : public testing::Test {
 protected:
  void SetUp() override { at::manual_seed(5); }

  TensorSource Adapters(int64_t rank, double b) const {
    const std::map<std::string, at::Tensor> decoder = RandomDecoder(config_);
    std::map<std::string, at::Tensor> tensors;
    for (const auto& [matrix, factors] : LowRankAdapters::Factors(config_)) {
      tensors[factors[0]] = at::randn({rank, decoder.at(matrix).size(1)}) * 0.2;
      tensors[factors[1]] = at::randn({decoder.at(matrix).size(0), rank}) * b;
    }
    return MemoryTensors(std::move(tensors));
  }
  LlamaDecoder Decoder() const {
    return {config_, MemoryTensors(RandomDecoder(config_)), at::kCPU, at::kFloat};
  }
  at::Tensor Forward(const LlamaDecoder& decoder) const {
    const Segment segment{.tokens = 12};
    return decoder.Forward(decoder.Embed(at::arange(12)), {&segment, 1});
  }

  const DecoderConfig config_ = TinyDecoderConfig();
};

TEST_F(LowRankTest, IsTheProductWithTheSum) {
  const LowRankOptions options{.rank = 3, .alpha = 6};
  const TensorSource adapters = Adapters(3, 0.2);
  LlamaDecoder adapted = Decoder();
  adapted.Adapt(options, adapters);
  std::map<std::string, at::Tensor> merged = RandomDecoder(config_);
  for (const auto& [matrix, factors] : LowRankAdapters::Factors(config_)) {
    merged[matrix] =
        merged[matrix] + 2 * at::matmul(adapters.Get(factors[1]), adapters.Get(factors[0]));
  }
  const LlamaDecoder plain(config_, MemoryTensors(merged), at::kCPU, at::kFloat);
  EXPECT_LT(MaxDifference(Forward(adapted), Forward(plain)), 1e-4);

  LlamaDecoder fresh = Decoder();
  fresh.Adapt(options, Adapters(3, 0));
  EXPECT_LT(MaxDifference(Forward(fresh), Forward(Decoder())), 1e-5) << "adapters that add nothing";
}

TEST_F(LowRankTest, AllOfThemLearnAndNothingElseHasTo) {
  LlamaDecoder decoder = Decoder();
  decoder.Adapt({.rank = 3, .alpha = 6}, Adapters(3, 0.2));
  std::map<std::string, at::Tensor> learning;
  decoder.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
    if (name.find(".lora_") == name.npos) return;
    parameter.requires_grad_();
    learning[name] = parameter;
  });
  EXPECT_EQ(learning.size(), 2 * 7 * static_cast<size_t>(config_.num_layers));
  // The same when layers are computed anew, though nothing in front of them learns.
  std::vector<std::map<std::string, at::Tensor>> gradients(2);
  for (const bool anew : {false, true}) {
    decoder.set_gradient_checkpointing(anew);
    decoder.adapters().set_dropout_draw(77);
    Forward(decoder).square().sum().backward();
    for (auto& [name, parameter] : learning) {
      ASSERT_TRUE(parameter.grad().defined()) << name;
      EXPECT_GT(parameter.grad().abs().max().item<float>(), 0) << name;
      gradients[anew][name] = parameter.grad().clone();
      parameter.mutable_grad() = at::Tensor();
    }
  }
  for (const auto& [name, gradient] : gradients[0]) {
    EXPECT_LT(MaxDifference(gradient, gradients[1].at(name)), 1e-4) << name;
  }
}

TEST_F(LowRankTest, LeavesOutOtherInputsForOtherDraws) {
  LlamaDecoder decoder = Decoder();
  decoder.Adapt({.rank = 3, .alpha = 6, .dropout = 0.25}, Adapters(3, 0.2));
  const at::Tensor all = Forward(decoder);
  LowRankAdapters& adapters = decoder.adapters();
  adapters.set_dropout_draw(1);
  const at::Tensor one = Forward(decoder);
  EXPECT_FALSE(at::equal(one, all));
  adapters.set_dropout_draw(2);
  EXPECT_FALSE(at::equal(Forward(decoder), one));
  adapters.set_dropout_draw(1);
  EXPECT_TRUE(at::equal(Forward(decoder), one)) << "a pure function of the draw";
  adapters.set_dropout_draw(std::nullopt);
  EXPECT_TRUE(at::equal(Forward(decoder), all));

  // As often as asked, and right in the mean.
  const at::Tensor x = at::ones({2000, config_.hidden_size});
  const at::Tensor whole = adapters.Difference(0, LowRankAdapters::kQ, x);
  adapters.set_dropout_draw(9);
  const at::Tensor dropped = adapters.Difference(0, LowRankAdapters::kQ, x);
  EXPECT_LT(MaxDifference(dropped.mean(0), whole[0]), 0.15 * whole.abs().max().item<double>());
}

TEST_F(LowRankTest, InSixteenBitsLittleIsKeptForTheGradients) {
  constexpr int64_t kRows = 512;
  const int64_t width = config_.hidden_size;
  LowRankAdapters adapters(config_, {.rank = 1, .alpha = 2, .dropout = 0.25}, Adapters(1, 0.2),
                           at::kCPU, at::kBFloat16);
  adapters.VisitParameters(
      0, [](const std::string&, at::Tensor& parameter) { parameter.requires_grad_(); });
  const at::Tensor x = at::randn({kRows, width}).requires_grad_();
  adapters.set_dropout_draw(3);
  const LiveBytes bytes;
  const at::Tensor y = adapters.Difference(0, LowRankAdapters::kQ, x);
  // Of x what is left, in 16 bits, and a byte that tells it from the rest.
  EXPECT_LT(bytes.now() - static_cast<int64_t>(y.nbytes()), kRows * width * (2 + 1 + 1));

  // What is left out does not depend on the dtype.
  y.sum().backward();
  const at::Tensor all = at::ones({kRows, width}).requires_grad_();
  LowRankAdapters wide(config_, {.rank = 1, .alpha = 2, .dropout = 0.25}, Adapters(1, 0.2),
                       at::kCPU, at::kFloat);
  wide.set_dropout_draw(3);
  wide.Difference(0, LowRankAdapters::kQ, all).sum().backward();
  EXPECT_TRUE(at::equal(x.grad() == 0, all.grad() == 0));
}

TEST_F(LowRankTest, NamesWhatDoesNotFit) {
  LlamaDecoder decoder = Decoder();
  try {
    decoder.Adapt({.rank = 4, .alpha = 6}, Adapters(3, 0.2));
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("q_proj.lora_A.weight"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace llava
