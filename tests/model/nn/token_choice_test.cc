// Tokens drawn by the kernel against those of the host, on a GPU or emulated (kernel_device.h).

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/llava/draw.h"
#include "model/llava/philox.h"
#include "model/nn/cuda_llama.h"
#include "model/nn/cuda_weights.h"
#include "model/nn/step_rows.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/runtime.h"
#include "tests/model/nn/serving_steps.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/ops/kernel_device.h"

namespace llava {
namespace {

class TokenChoiceTest : public cuda::KernelTest {
 protected:
  // What the kernel draws for each of `choices` from the row of `logits` [B, V] with its number
  // modulo B.
  static std::vector<int32_t> Draw(const at::Tensor& logits,
                                   const std::vector<TokenChoice>& choices, int64_t width) {
    const at::Device device = cuda::KernelDevice();
    std::vector<cuda::SampleChoice> list;
    for (size_t i = 0; i < choices.size(); ++i) {
      list.push_back({.row = static_cast<int32_t>(i % static_cast<size_t>(logits.size(0))),
                      .top_k = choices[i].top_k,
                      .temperature = choices[i].temperature,
                      .top_p = choices[i].top_p,
                      .min_p = choices[i].min_p,
                      .uniform = choices[i].uniform});
    }
    const at::Tensor on_device = logits.to(device);
    const at::Tensor at_choices =
        at::from_blob(list.data(), {static_cast<int64_t>(list.size() * sizeof list[0])}, at::kByte)
            .to(device, /*non_blocking=*/false, /*copy=*/true);
    std::vector<int32_t> found;
    for (const bool backwards : {false, true}) {
      const at::Tensor ids = at::full({static_cast<int64_t>(list.size())}, -7,
                                      at::TensorOptions(device).dtype(at::kInt));
      cuda::RunThreadsBackwards(backwards);
      cuda::SampleTokens(
          {.logits = on_device.const_data_ptr<float>(),
           .stride = on_device.stride(0),
           .width = static_cast<int>(width),
           .choices = reinterpret_cast<const cuda::SampleChoice*>(at_choices.const_data_ptr()),
           .ids = ids.data_ptr<int32_t>()},
          static_cast<int64_t>(list.size()), cuda::CurrentStream(device));
      cuda::RunThreadsBackwards(false);
      const at::Tensor host = ids.cpu();
      const std::vector<int32_t> drawn(host.const_data_ptr<int32_t>(),
                                       host.const_data_ptr<int32_t>() + host.numel());
      if (backwards) {
        EXPECT_EQ(drawn, found);
      }
      found = drawn;
    }
    return found;
  }

  static void ExpectTheHostsTokens(const at::Tensor& logits,
                                   const std::vector<TokenChoice>& choices, int64_t width) {
    const std::vector<int32_t> found = Draw(logits, choices, width);
    for (size_t i = 0; i < choices.size(); ++i) {
      const at::Tensor row = logits[static_cast<int64_t>(i) % logits.size(0)].contiguous();
      const std::span<const float> values(row.const_data_ptr<float>(), static_cast<size_t>(width));
      EXPECT_EQ(found[i], DrawToken(values, choices[i]))
          << "row " << i % logits.size(0) << " of " << width << " temperature "
          << choices[i].temperature << " top_k " << choices[i].top_k << " top_p "
          << choices[i].top_p << " min_p " << choices[i].min_p;
    }
  }

  static at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
    return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
  }
};

TEST_F(TokenChoiceTest, IsTheHostsForAnyOptions) {
  for (const int64_t width : {1, 2, 37, 512, 513, 2000, 32000}) {
    const at::Tensor logits = Random({3, width + 5}, static_cast<uint64_t>(width)) * 4;
    std::vector<TokenChoice> choices;
    uint64_t position = 0;
    for (const float temperature : {0.0f, 1e-6f, 0.7f, 1.0f, 5.0f}) {
      for (const uint32_t top_k : {0u, 1u, 7u, 600u}) {
        for (const float top_p : {1.0f, 0.9f, 0.3f, 1e-6f}) {
          if (width == 32000 && position % 5 != 0 && ++position > 0) continue;  // time
          choices.push_back({.temperature = temperature,
                             .top_p = top_p,
                             .min_p = position % 3 == 0 ? 0.05f : 0.0f,
                             .top_k = top_k,
                             .uniform = UniformAt(11, position)});
          ++position;
        }
      }
    }
    ExpectTheHostsTokens(logits, choices, width);
  }
}

TEST_F(TokenChoiceTest, EqualsAreTakenByTheirIds) {
  const int64_t width = 1000;
  at::Tensor logits = at::zeros({3, width});
  logits[1] = at::remainder(at::arange(width, at::kFloat), 3);  // 333 of the best
  logits[2] = at::where(at::remainder(at::arange(width), 2) == 0, 0.0, -0.0);
  std::vector<TokenChoice> choices;
  for (const float top_p : {1.0f, 0.5f, 0.25f, 0.01f}) {
    for (const uint32_t top_k : {0u, 5u, 400u}) {
      for (int i = 0; i < 6; ++i) {
        choices.push_back({.temperature = 1,
                           .top_p = top_p,
                           .top_k = top_k,
                           .uniform = i == 0   ? 0.0
                                      : i == 1 ? 1 - 0x1p-53
                                               : UniformAt(5, i)});
      }
    }
  }
  ExpectTheHostsTokens(logits, choices, width);
  for (TokenChoice& choice : choices) choice.temperature = 0;
  ExpectTheHostsTokens(logits, choices, width);
}

TEST_F(TokenChoiceTest, SaysThatLogitsAreNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  at::Tensor logits = Random({4, 700}, 1);
  logits[0][699] = std::numeric_limits<float>::quiet_NaN();
  logits[1][3] = kInfinity;
  logits[2][44] = -kInfinity;
  for (const float temperature : {0.0f, 1.0f}) {
    const TokenChoice choice = {.temperature = temperature, .uniform = 0.5};
    const std::vector<int32_t> found = Draw(logits, {choice, choice, choice, choice}, 700);
    EXPECT_EQ(std::vector<int32_t>(found.begin(), found.begin() + 3),
              std::vector<int32_t>({-1, -1, -1}));
    EXPECT_GE(found[3], 0);
    EXPECT_GE(Draw(logits, {choice}, 699)[0], 0) << "what is behind the width counts for nothing";
  }
}

TEST_F(TokenChoiceTest, SharesAreThoseOfTheProbabilities) {
  const at::Tensor logits = at::tensor({0.0f, 1.0f, 2.0f, -1.0f}).view({1, 4});
  std::vector<TokenChoice> choices;
  constexpr int kDraws = 4000;
  for (int i = 0; i < kDraws; ++i) {
    choices.push_back({.temperature = 1, .uniform = (i + 0.5) / kDraws});
  }
  const std::vector<int32_t> found = Draw(logits, choices, 4);
  const at::Tensor expected = logits[0].softmax(0) * kDraws;
  for (int32_t id = 0; id < 4; ++id) {
    EXPECT_NEAR(static_cast<double>(std::count(found.begin(), found.end(), id)),
                expected[id].item<double>(), 1.5);
  }
}

TEST_F(TokenChoiceTest, AStepDrawsForWhomItMayAndHandsOverTheOtherLogits) {
  DecoderConfig config = TinyDecoderConfig();
  const auto make = [&](bool graphs) {
    return CudaLlama(
        config,
        ToCuda(ReadDecoderWeights(config, MemoryTensors(RandomDecoder(config)),
                                  cuda::KernelDevice(), at::kFloat, /*join=*/true)),
        {.kv_bytes = static_cast<uint64_t>(20 * KvBlockBytes(config, 4)), .graphs = graphs});
  };
  const int64_t known = config.vocab_size - 3;
  for (const bool graphs : {true, false}) {
    CudaLlama plain = make(graphs), drawing = make(graphs);
    const std::vector<int32_t> blocks = {0, 1, 2, 3, 4, 5};
    const auto both = [&](std::span<const int32_t> ids, std::span<const StepSequence> sequences,
                          const std::vector<int64_t>& wanted,
                          const std::vector<std::optional<TokenChoice>>& choices) {
      const at::Tensor logits = plain.Step(plain.Embed(ids), sequences, wanted);
      const DrawnStep step =
          drawing.StepAndDraw(drawing.Embed(ids), sequences, wanted, choices, known);
      ASSERT_EQ(step.ids.size(), wanted.size());
      int64_t others = 0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        const at::Tensor row = logits[static_cast<int64_t>(i)];
        if (choices[i]) {
          EXPECT_EQ(
              step.ids[i],
              DrawToken({row.const_data_ptr<float>(), static_cast<size_t>(known)}, *choices[i]));
          continue;
        }
        EXPECT_EQ(step.ids[i], DrawnStep::kNotAsked);
        EXPECT_TRUE(at::equal(step.logits[others++], row));
      }
      EXPECT_EQ(step.logits.defined() ? step.logits.size(0) : 0, others);
    };
    // Prompts of three sequences, then a token each.
    const std::vector<int32_t> ids = TestIds(12, 3, config.vocab_size);
    const auto table = [&](int i) { return std::span(blocks).subspan(2 * i, 2); };
    const TokenChoice warm = {.temperature = 1.5f, .top_p = 0.9f, .top_k = 20, .uniform = 0.37};
    both(ids,
         std::vector<StepSequence>{{.tokens = 4, .blocks = table(0)},
                                   {.tokens = 4, .blocks = table(1)},
                                   {.tokens = 4, .blocks = table(2)}},
         {3, 7, 11}, {warm, std::nullopt, TokenChoice{}});
    const std::vector<StepSequence> next = {{.tokens = 1, .computed = 4, .blocks = table(0)},
                                            {.tokens = 1, .computed = 4, .blocks = table(1)},
                                            {.tokens = 1, .computed = 4, .blocks = table(2)}};
    both(std::span(ids).first(3), next, {0, 1, 2}, {warm, warm, TokenChoice{}});
    both(std::span(ids).first(3), next, {0, 2}, {std::nullopt, warm});
    both(std::span(ids).first(3), next, {0, 1, 2}, {std::nullopt, std::nullopt, std::nullopt});
    EXPECT_THROW(drawing.StepAndDraw(drawing.Embed(std::span(ids).first(3)), next,
                                     std::vector<int64_t>{0}, {}, known),
                 std::invalid_argument);
  }
}

}  // namespace
}  // namespace llava
