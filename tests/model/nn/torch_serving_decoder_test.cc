#include "model/nn/torch_serving_decoder.h"

#include <stdexcept>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/nn/llama.h"
#include "tests/model/nn/serving_steps.h"
#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

constexpr int64_t kBlocks = 40;

TorchServingDecoder MakeServing(at::ScalarType dtype = at::kFloat) {
  const DecoderConfig config = TinyDecoderConfig();
  return {config, ReadDecoderWeights(config, MemoryTensors(RandomDecoder(config)), at::kCPU, dtype),
          kBlocks};
}

// Logits of the decoder that keeps no paged cache.
at::Tensor Expected(std::span<const int32_t> ids, at::ScalarType dtype = at::kFloat) {
  const DecoderConfig config = TinyDecoderConfig();
  const LlamaDecoder decoder(config, MemoryTensors(RandomDecoder(config)), at::kCPU, dtype);
  const Segment segment{.tokens = static_cast<int64_t>(ids.size())};
  const at::Tensor embeddings =
      decoder.Embed(at::tensor(at::ArrayRef<int32_t>(ids.data(), ids.size()), at::kInt));
  return decoder.Logits(decoder.Forward(embeddings, {&segment, 1}));
}

TEST(TorchServingDecoderTest, AnyPiecesGiveWhatTheDecoderGives) {
  const std::vector<int32_t> ids = TestIds(90, 1, 53);
  for (const auto& [dtype, bound] : {std::pair{at::kFloat, 5e-5}, {at::kBFloat16, 0.15}}) {
    TorchServingDecoder decoder = MakeServing(dtype);
    ServingSteps steps(decoder);
    const at::Tensor expected = Expected(ids, dtype);
    for (const int64_t most : {1, 7, 16, 17, 64, 90}) {
      const at::Tensor logits = steps.Whole(ids, most);
      EXPECT_EQ(logits.scalar_type(), at::kFloat);
      EXPECT_LT(MaxDifference(logits, expected), bound) << dtype << " in pieces of " << most;
    }
  }
}

TEST(TorchServingDecoderTest, SequencesOfABatchDoNotSeeEachOther) {
  TorchServingDecoder decoder = MakeServing();
  ServingSteps steps(decoder);
  const std::vector<std::vector<int32_t>> ids = {TestIds(40, 1, 53), TestIds(33, 2, 53),
                                                 TestIds(19, 3, 53)};
  std::vector<std::vector<at::Tensor>> parts(3);
  const std::vector<int> sequences = {steps.Begin(), steps.Begin(), steps.Begin()};
  // Tokens of each sequence in each step; the first two take turns in decoding and prefill.
  std::vector<size_t> done(3);
  for (const std::vector<size_t>& tokens :
       {std::vector<size_t>{16, 1, 0}, {1, 30, 18}, {1, 1, 1}, {22, 1, 0}}) {
    std::vector<ServingSteps::Piece> pieces;
    for (int i = 0; i < 3; ++i) {
      if (tokens[i] == 0) continue;
      pieces.push_back({sequences[i], std::span(ids[i]).subspan(done[i], tokens[i])});
      done[i] += tokens[i];
    }
    const at::Tensor logits = steps.Step(pieces);
    int64_t begin = 0;
    for (int i = 0; i < 3; ++i) {
      const auto count = static_cast<int64_t>(tokens[i]);
      parts[i].push_back(logits.narrow(0, begin, count));
      begin += count;
    }
  }
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(done[i], ids[i].size());
    EXPECT_LT(MaxDifference(at::cat(parts[i]), Expected(ids[i])), 5e-5) << i;
  }
}

TEST(TorchServingDecoderTest, SharedBlocksAndCopiesServeManySequences) {
  TorchServingDecoder decoder = MakeServing();
  ServingSteps steps(decoder);
  std::vector<int32_t> ids = TestIds(50, 1, 53);
  const int parent = steps.Begin();
  const ServingSteps::Piece whole{parent, ids};
  steps.Step({&whole, 1});
  const int child = steps.Fork(parent, 37);
  const std::vector<int32_t> other = TestIds(9, 5, 53), more = TestIds(4, 6, 53);
  const std::vector<ServingSteps::Piece> pieces = {{child, other}, {parent, more}};
  const at::Tensor logits = steps.Step(pieces);
  std::vector<int32_t> branch(ids.begin(), ids.begin() + 37);
  branch.insert(branch.end(), other.begin(), other.end());
  ids.insert(ids.end(), more.begin(), more.end());
  EXPECT_LT(MaxDifference(logits.narrow(0, 0, 9), Expected(branch).narrow(0, 37, 9)), 5e-5);
  EXPECT_LT(MaxDifference(logits.narrow(0, 9, 4), Expected(ids).narrow(0, 50, 4)), 5e-5);
}

TEST(TorchServingDecoderTest, GivesTheWantedRowsInTheirOrder) {
  TorchServingDecoder decoder = MakeServing();
  const std::vector<int32_t> ids = TestIds(20, 1, 53), blocks = {3, 1};
  const StepSequence sequence{.tokens = 20, .blocks = blocks};
  const at::Tensor logits =
      decoder.Step(decoder.Embed(ids), {&sequence, 1}, std::vector<int64_t>{19, 4});
  const at::Tensor expected = Expected(ids);
  ASSERT_EQ(logits.sizes(), (at::IntArrayRef{2, 53}));
  EXPECT_LT(MaxDifference(logits[0], expected[19]), 5e-5);
  EXPECT_LT(MaxDifference(logits[1], expected[4]), 5e-5);
  EXPECT_EQ(decoder.Step(decoder.Embed(ids), {&sequence, 1}, {}).sizes(), (at::IntArrayRef{0, 53}));
}

TEST(TorchServingDecoderTest, CountsItsWeights) {
  int64_t values = 0;
  for (const auto& [name, tensor] : RandomDecoder(TinyDecoderConfig())) values += tensor.numel();
  EXPECT_EQ(MakeServing().weight_bytes(), static_cast<uint64_t>(4 * values));
  EXPECT_EQ(MakeServing(at::kBFloat16).weight_bytes(), static_cast<uint64_t>(2 * values));
}

TEST(TorchServingDecoderTest, RefusesWhatDoesNotFit) {
  TorchServingDecoder decoder = MakeServing();
  const std::vector<int32_t> ids = TestIds(17, 1, 53), blocks = {0, 39}, beyond = {0, 40};
  const std::vector<int32_t> many(19, 0);
  const at::Tensor rows = decoder.Embed(ids);
  const auto refuses = [&](const StepSequence& sequence, const std::vector<int64_t>& wanted = {}) {
    EXPECT_THROW(decoder.Step(rows, {&sequence, 1}, wanted), std::invalid_argument);
  };
  refuses({.tokens = 16, .blocks = blocks});
  refuses({.tokens = 17, .computed = 16, .blocks = blocks});
  refuses({.tokens = 17, .blocks = beyond});
  refuses({.tokens = 17, .computed = 284, .blocks = many});
  refuses({.tokens = 17, .computed = -1, .blocks = blocks});
  refuses({.tokens = 17, .blocks = blocks}, {17});
  refuses({.tokens = 17, .blocks = blocks}, {-1});
  EXPECT_THROW(decoder.Step(rows, {}, {}), std::invalid_argument);
  EXPECT_THROW(decoder.CopyBlock(0, 40), std::invalid_argument);
  EXPECT_THROW(decoder.CopyBlock(-1, 0), std::invalid_argument);
  for (const int32_t wrong : {53, -1}) {
    EXPECT_THROW(decoder.Embed(std::vector<int32_t>{1, wrong}), std::invalid_argument);
  }
  const DecoderConfig config = TinyDecoderConfig();
  EXPECT_THROW(TorchServingDecoder(config,
                                   ReadDecoderWeights(config, MemoryTensors(RandomDecoder(config)),
                                                      at::kCPU, at::kFloat),
                                   0),
               std::invalid_argument);
}

}  // namespace
}  // namespace llava
