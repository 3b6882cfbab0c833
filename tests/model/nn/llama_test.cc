#include "model/nn/llama.h"

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

LlamaDecoder MakeDecoder(const DecoderConfig& config = TinyDecoderConfig(),
                         at::ScalarType dtype = at::kFloat) {
  return LlamaDecoder(config, MemoryTensors(RandomDecoder(config)), at::kCPU, dtype);
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

TEST(LlamaDecoderTest, BranchesAreSequencesWithTheSameBeginning) {
  const LlamaDecoder decoder = MakeDecoder();
  const at::Tensor shared = Ids(11, 1), other = Ids(6, 9);
  const std::vector<at::Tensor> ends = {Ids(3, 2), Ids(8, 3), Ids(1, 4)};
  const std::vector<Segment> batch = {{.tokens = 6},
                                      {.tokens = 23, .shared = 11, .branches = {3, 8, 1}}};
  const at::Tensor out =
      decoder.Forward(decoder.Embed(at::cat({other, shared, ends[0], ends[1], ends[2]})), batch);
  EXPECT_LT(MaxDifference(out.narrow(0, 0, 6), WholeForward(decoder, other)), 2e-5);
  int64_t begin = 6 + 11;
  for (const at::Tensor& end : ends) {
    const at::Tensor alone = WholeForward(decoder, at::cat({shared, end}));
    EXPECT_LT(MaxDifference(out.narrow(0, 6, 11), alone.narrow(0, 0, 11)), 2e-5);
    EXPECT_LT(MaxDifference(out.narrow(0, begin, end.size(0)), alone.narrow(0, 11, end.size(0))),
              2e-5);
    begin += end.size(0);
  }
}

TEST(LlamaDecoderTest, RefusesBranchesThatDoNotAddUp) {
  const LlamaDecoder decoder = MakeDecoder();
  KvCache cache(decoder.config(), at::kCPU, at::kFloat);
  const at::Tensor x = decoder.Embed(Ids(9, 1));
  for (const Segment& wrong :
       std::vector<Segment>{{.tokens = 9, .shared = 4, .branches = {3}},
                            {.tokens = 9, .shared = 0, .branches = {9}},
                            {.tokens = 9, .shared = 4, .branches = {5, 0}},
                            {.tokens = 9, .cache = &cache, .shared = 4, .branches = {5}}}) {
    EXPECT_THROW(decoder.Forward(x, {&wrong, 1}), std::invalid_argument);
  }
}

// All gradients of a loss over two sequences, one with branches.
std::map<std::string, at::Tensor> Gradients(bool checkpointing) {
  LlamaDecoder decoder = MakeDecoder();
  decoder.set_gradient_checkpointing(checkpointing);
  std::map<std::string, at::Tensor> parameters;
  decoder.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
    parameters.emplace(name, parameter.requires_grad_());
  });
  const std::vector<Segment> batch = {{.tokens = 6},
                                      {.tokens = 9, .shared = 4, .branches = {3, 2}}};
  const at::Tensor hidden = decoder.Forward(decoder.Embed(Ids(15, 7)), batch);
  decoder.Logits(hidden).log_softmax(-1).select(1, 5).sum().backward();
  std::map<std::string, at::Tensor> gradients;
  for (const auto& [name, parameter] : parameters) gradients.emplace(name, parameter.grad());
  return gradients;
}

TEST(LlamaDecoderTest, GradientCheckpointingChangesNothing) {
  const auto plain = Gradients(false), recomputed = Gradients(true);
  ASSERT_EQ(plain.size(), recomputed.size());
  for (const auto& [name, gradient] : plain) {
    ASSERT_TRUE(gradient.defined()) << name;
    EXPECT_GT(gradient.abs().max().item<double>(), 0) << name;
    EXPECT_TRUE(at::equal(gradient, recomputed.at(name))) << name;
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

TEST(LlamaDecoderTest, EveryRowOfABatchHasItsOwnPosition) {
  // Positions 4, 4, 6: the first, the last and the largest are as if they followed each other.
  const LlamaDecoder decoder = MakeDecoder();
  const std::vector<int64_t> lengths = {4, 4, 6};
  std::vector<KvCache> caches(3, KvCache(decoder.config(), at::kCPU, at::kFloat));
  std::vector<Segment> step;
  std::vector<at::Tensor> next;
  for (size_t i = 0; i < 3; ++i) {
    const at::Tensor ids = Ids(lengths[i] + 1, static_cast<int64_t>(i));
    const Segment head{.tokens = lengths[i], .cache = &caches[i]};
    decoder.Forward(decoder.Embed(ids.narrow(0, 0, lengths[i])), {&head, 1});
    step.push_back({.tokens = 1, .cache = &caches[i]});
    next.push_back(ids.narrow(0, lengths[i], 1));
  }
  const at::Tensor out = decoder.Forward(decoder.Embed(at::cat(next)), step);
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor alone = WholeForward(decoder, Ids(lengths[i] + 1, i));
    EXPECT_LT(MaxDifference(out[i], alone[lengths[i]]), 2e-5) << "sequence " << i;
  }
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

TEST(LlamaDecoderTest, RoundsUpTheRowsOfLargeBatchesUnseen) {
  // 16 bits on the CPU: 70 rows become 128 inside.
  const LlamaDecoder decoder = MakeDecoder(TinyDecoderConfig(), at::kBFloat16);
  const LlamaDecoder exact = MakeDecoder();
  const at::Tensor ids = Ids(70, 5);
  const std::vector<Segment> batch = {{.tokens = 30, .shared = 9, .branches = {11, 10}},
                                      {.tokens = 40}};
  std::vector<at::Tensor> states = {at::zeros({1})}, exact_states;
  const at::Tensor out = decoder.Forward(decoder.Embed(ids), batch, &states);
  const at::Tensor expected = exact.Forward(exact.Embed(ids), batch, &exact_states);
  EXPECT_EQ(out.sizes(), expected.sizes());
  EXPECT_LT(MaxDifference(out, expected), 0.15);
  ASSERT_EQ(states.size(), 1 + exact_states.size()) << "behind what was there";
  for (size_t i = 0; i < exact_states.size(); ++i) {
    EXPECT_EQ(states[1 + i].sizes(), exact_states[i].sizes());
  }
  EXPECT_EQ(decoder.Logits(out).sizes(), (at::IntArrayRef{70, 53}));
  EXPECT_TRUE(
      at::equal(decoder.Logits(out).narrow(0, 0, 64), decoder.Logits(out.narrow(0, 0, 64))));

  // 65 rows lack 63, which is more than this model's context has.
  DecoderConfig small = TinyDecoderConfig();
  small.max_position_embeddings = 40;
  const LlamaDecoder short_context = MakeDecoder(small, at::kBFloat16);
  const std::vector<Segment> fitting = {{.tokens = 33}, {.tokens = 32}};
  const at::Tensor few = Ids(65, 2);
  EXPECT_LT(MaxDifference(short_context.Forward(short_context.Embed(few), fitting),
                          exact.Forward(exact.Embed(few), fitting)),
            0.15);

  // With a cache, in two pieces.
  KvCache cache(decoder.config(), at::kCPU, at::kBFloat16);
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{30, 33}, {63, 7}}) {
    const Segment piece{.tokens = count, .cache = &cache};
    const std::vector<Segment> pieces = {piece, {.tokens = 50}};
    const at::Tensor rows = at::cat({ids.narrow(0, begin, count), Ids(50, 1)});
    const at::Tensor part = decoder.Forward(decoder.Embed(rows), pieces);
    ASSERT_EQ(part.size(0), count + 50);
    EXPECT_LT(MaxDifference(part.narrow(0, 0, count), expected.narrow(0, begin, count)), 0.15);
  }
  EXPECT_EQ(cache.length(), 40);
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
    LlamaDecoder(config, MemoryTensors(tensors), at::kCPU, at::kFloat);
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
