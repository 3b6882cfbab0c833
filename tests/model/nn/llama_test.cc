#include "model/nn/llama.h"

#include <stdexcept>
#include <string>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

LlamaDecoder MakeDecoder(const DecoderConfig& config = TinyDecoderConfig(),
                         at::ScalarType dtype = at::kFloat) {
  return LlamaDecoder(config, SourceOf(RandomDecoder(config)), at::kCPU, dtype);
}

at::Tensor Ids(int64_t count, int64_t seed) {
  return at::remainder(at::arange(count, at::kLong) * 17 + seed, 53);
}

at::Tensor WholeForward(const LlamaDecoder& decoder, const at::Tensor& ids) {
  const Segment segment{.tokens = ids.size(0)};
  return decoder.Forward(decoder.Embed(ids), {&segment, 1});
}

TEST(LlamaDecoderTest, GoesOnFromItsCacheWhateverThePieces) {
  const LlamaDecoder decoder = MakeDecoder();
  const at::Tensor ids = Ids(90, 5);
  const at::Tensor expected = WholeForward(decoder, ids);
  for (const int64_t piece : {1, 7, 64, 90}) {
    KvCache cache(decoder.config(), at::kCPU, at::kFloat);
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; begin < 90; begin += piece) {
      const int64_t count = std::min<int64_t>(piece, 90 - begin);
      const Segment segment{.tokens = count, .cache = &cache};
      parts.push_back(decoder.Forward(decoder.Embed(ids.narrow(0, begin, count)), {&segment, 1}));
    }
    EXPECT_EQ(cache.length(), 90);
    EXPECT_LT(MaxDifference(at::cat(parts), expected), 2e-5) << "pieces of " << piece;
  }
}

TEST(LlamaDecoderTest, SequencesOfABatchDoNotSeeEachOther) {
  const LlamaDecoder decoder = MakeDecoder();
  const at::Tensor first = Ids(9, 1), second = Ids(1, 2), third = Ids(30, 3);
  KvCache cache(decoder.config(), at::kCPU, at::kFloat);
  const Segment head{.tokens = 20, .cache = &cache};
  decoder.Forward(decoder.Embed(third.narrow(0, 0, 20)), {&head, 1});
  const std::vector<Segment> batch = {
      {.tokens = 9}, {.tokens = 1}, {.tokens = 10, .cache = &cache}};
  const at::Tensor out =
      decoder.Forward(decoder.Embed(at::cat({first, second, third.narrow(0, 20, 10)})), batch);
  EXPECT_LT(MaxDifference(out.narrow(0, 0, 9), WholeForward(decoder, first)), 2e-5);
  EXPECT_LT(MaxDifference(out.narrow(0, 9, 1), WholeForward(decoder, second)), 2e-5);
  EXPECT_LT(MaxDifference(out.narrow(0, 10, 10), WholeForward(decoder, third).narrow(0, 20, 10)),
            2e-5);
}

TEST(LlamaDecoderTest, TruncatedCacheIsAsIfTheRestHadNeverBeen) {
  const LlamaDecoder decoder = MakeDecoder();
  KvCache cache(decoder.config(), at::kCPU, at::kFloat);
  const Segment wrong{.tokens = 12, .cache = &cache};
  decoder.Forward(decoder.Embed(at::cat({Ids(8, 1), Ids(4, 9)})), {&wrong, 1});
  cache.Truncate(8);
  const Segment right{.tokens = 4, .cache = &cache};
  const at::Tensor out = decoder.Forward(decoder.Embed(Ids(12, 1).narrow(0, 8, 4)), {&right, 1});
  EXPECT_LT(MaxDifference(out, WholeForward(decoder, Ids(12, 1)).narrow(0, 8, 4)), 2e-5);
}

TEST(LlamaDecoderTest, GivesTheInputOfEveryLayerAndTheResult) {
  const LlamaDecoder decoder = MakeDecoder();
  std::vector<at::Tensor> states;
  const Segment segment{.tokens = 5};
  const at::Tensor embeddings = decoder.Embed(Ids(5, 1));
  const at::Tensor out = decoder.Forward(embeddings, {&segment, 1}, &states);
  ASSERT_EQ(states.size(), 3u);
  EXPECT_TRUE(at::equal(states.front(), embeddings));
  EXPECT_TRUE(at::equal(states.back(), out));
}

TEST(LlamaDecoderTest, LogitsAreFloat32AndNearInLowerPrecision) {
  const at::Tensor ids = Ids(12, 4);
  const LlamaDecoder exact = MakeDecoder();
  const at::Tensor expected = exact.Logits(WholeForward(exact, ids));
  EXPECT_EQ(expected.sizes(), (at::IntArrayRef{12, 53}));
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const LlamaDecoder decoder = MakeDecoder(TinyDecoderConfig(), dtype);
    const at::Tensor logits = decoder.Logits(WholeForward(decoder, ids));
    EXPECT_EQ(logits.scalar_type(), at::kFloat);
    EXPECT_LT(MaxDifference(logits, expected), dtype == at::kHalf ? 0.03 : 0.2);
  }
}

TEST(LlamaDecoderTest, TiedHeadFollowsAReplacedEmbedding) {
  DecoderConfig config = TinyDecoderConfig();
  config.tie_word_embeddings = true;
  LlamaDecoder decoder = MakeDecoder(config);
  std::vector<std::string> names;
  decoder.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
    names.push_back(name);
    if (name == "model.embed_tokens.weight") parameter = at::zeros_like(parameter);
  });
  EXPECT_THAT(names, testing::Not(testing::Contains("lm_head.weight")));
  EXPECT_EQ(decoder.Logits(at::ones({1, config.hidden_size})).abs().max().item<float>(), 0);
}

TEST(LlamaDecoderTest, VisitsEveryTensorOfTheCheckpoint) {
  const DecoderConfig config = TinyDecoderConfig();
  LlamaDecoder decoder = MakeDecoder(config);
  std::map<std::string, at::Tensor> expected = RandomDecoder(config);
  decoder.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
    ASSERT_TRUE(expected.contains(name)) << name;
    EXPECT_TRUE(at::equal(parameter, expected.at(name))) << name;
    expected.erase(name);
  });
  EXPECT_TRUE(expected.empty()) << expected.begin()->first << " was not visited";
}

TEST(LlamaDecoderTest, RefusesWhatDoesNotFitAndLeavesCachesAlone) {
  const LlamaDecoder decoder = MakeDecoder();
  KvCache cache(decoder.config(), at::kCPU, at::kFloat);
  const Segment four{.tokens = 4, .cache = &cache};
  EXPECT_THROW(decoder.Forward(decoder.Embed(Ids(5, 1)), {&four, 1}), std::invalid_argument);
  EXPECT_THROW(decoder.Forward(at::zeros({4, 35}), {&four, 1}), std::invalid_argument);
  const std::vector<Segment> empty = {four, {.tokens = 0}};
  EXPECT_THROW(decoder.Forward(decoder.Embed(Ids(4, 1)), empty), std::invalid_argument);
  const Segment longer{.tokens = 301, .cache = &cache};
  try {
    decoder.Forward(decoder.Embed(Ids(301, 1)), {&longer, 1});
    FAIL() << "a sequence beyond the context was taken";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("301"), testing::HasSubstr("300")));
  }
  EXPECT_EQ(cache.length(), 0);
}

TEST(LlamaDecoderTest, NamesEveryTensorThatIsMissingOrMisshapen) {
  const DecoderConfig config = TinyDecoderConfig();
  auto tensors = RandomDecoder(config);
  tensors.erase("model.norm.weight");
  tensors["model.layers.1.mlp.up_proj.weight"] = at::zeros({3, 4});
  try {
    LlamaDecoder(config, SourceOf(tensors), at::kCPU, at::kFloat);
    FAIL() << "a broken checkpoint was taken";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("model.norm.weight is missing"));
    EXPECT_THAT(error.what(), testing::HasSubstr("model.layers.1.mlp.up_proj.weight"));
    EXPECT_THAT(error.what(), testing::HasSubstr("[3, 4]"));
    EXPECT_THAT(error.what(), testing::HasSubstr("[50, 36]"));
  }
}

}  // namespace
}  // namespace llava
