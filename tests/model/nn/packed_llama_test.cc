#include "model/nn/packed_llama.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/nn/llama.h"
#include "tests/model/nn/serving_steps.h"
#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

using ops::cpu::PackedMatrix;
using ops::cpu::ThreadPool;
using ops::cpu::WeightFormat;

constexpr int64_t kVocabulary = 53;

// With heads of a size that the kernels take.
DecoderConfig Config() {
  DecoderConfig config = TinyDecoderConfig();
  config.head_dim = 18;
  return config;
}

struct Setting {
  WeightFormat format;
  int64_t group;
  KvType kv;
  double bound;  // of the relative error of logits, against exact arithmetic with these weights
};

const std::vector<Setting>& Settings() {
  static const std::vector<Setting> settings = {
      {WeightFormat::kFloat, 0, KvType::kAuto, 2e-5},
      {WeightFormat::kBFloat16, 0, KvType::kFloat, 0.012},
      {WeightFormat::kBFloat16, 0, KvType::kAuto, 0.012},
      {WeightFormat::kBFloat16, 0, KvType::kInt8, 0.02},
      {WeightFormat::kInt8, 32, KvType::kFloat, 0.02},
      {WeightFormat::kInt4, 32, KvType::kBFloat16, 0.02},
  };
  return settings;
}

PackedDecoderWeights Pack(const Setting& setting, ThreadPool& pool) {
  const DecoderConfig config = Config();
  PackOptions options;
  options.format = setting.format;
  options.group = setting.group;
  return PackDecoder(config, MemoryTensors(RandomDecoder(config)), options, pool);
}

PackedLlama Make(const Setting& setting, int threads = 1, int64_t blocks = 40) {
  auto pool = std::make_shared<ThreadPool>(threads);
  PackedDecoderWeights weights = Pack(setting, *pool);
  const DecoderConfig config = Config();
  return {
      config, std::move(weights), std::move(pool), setting.kv,
      static_cast<uint64_t>(blocks * PackedLlama::BlockBytes(config, setting.format, setting.kv))};
}

at::Tensor Unpacked(const PackedMatrix& matrix, int64_t first, int64_t rows) {
  at::Tensor out = at::empty({rows, matrix.depth()}, at::kFloat);
  for (int64_t i = 0; i < rows; ++i) {
    matrix.Unpack(first + i, out.data_ptr<float>() + i * matrix.depth());
  }
  return out;
}

// Logits of all rows in float32, with exactly the weights that were packed.
at::Tensor Expected(const Setting& setting, std::span<const int32_t> ids) {
  ThreadPool pool(1);
  const PackedDecoderWeights packed = Pack(setting, pool);
  const DecoderConfig config = Config();
  auto tensors = RandomDecoder(config);
  const int64_t q = config.num_heads * config.head_dim, kv = config.num_kv_heads * config.head_dim;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i) + ".";
    const PackedLayer& layer = packed.layers[i];
    tensors[name + "self_attn.q_proj.weight"] = Unpacked(layer.qkv, 0, q);
    tensors[name + "self_attn.k_proj.weight"] = Unpacked(layer.qkv, q, kv);
    tensors[name + "self_attn.v_proj.weight"] = Unpacked(layer.qkv, q + kv, kv);
    tensors[name + "self_attn.o_proj.weight"] = Unpacked(layer.o, 0, layer.o.rows());
    const int64_t inner = config.intermediate_size;
    tensors[name + "mlp.gate_proj.weight"] = Unpacked(layer.gate_up, 0, inner);
    tensors[name + "mlp.up_proj.weight"] = Unpacked(layer.gate_up, inner, inner);
    tensors[name + "mlp.down_proj.weight"] = Unpacked(layer.down, 0, layer.down.rows());
  }
  tensors["lm_head.weight"] = Unpacked(packed.lm_head, 0, packed.lm_head.rows());
  tensors["model.embed_tokens.weight"] = packed.embedding.to(at::kFloat);
  const LlamaDecoder decoder(config, MemoryTensors(tensors), at::kCPU, at::kFloat);
  const Segment segment{.tokens = static_cast<int64_t>(ids.size())};
  const at::Tensor embeddings =
      decoder.Embed(at::tensor(at::ArrayRef<int32_t>(ids.data(), ids.size()), at::kInt));
  return decoder.Logits(decoder.Forward(embeddings, {&segment, 1}));
}

double RelativeError(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).norm() / expected.norm()).item<double>();
}

TEST(PackedLlamaTest, ComputesWhatTheReferenceComputes) {
  const std::vector<int32_t> ids = TestIds(90, 1, kVocabulary);
  for (const Setting& setting : Settings()) {
    PackedLlama decoder = Make(setting);
    const at::Tensor logits = ServingSteps(decoder).Whole(ids, 90);
    EXPECT_LT(RelativeError(logits, Expected(setting, ids)), setting.bound)
        << decoder.weights().layers[0].qkv.Describe();
  }
}

TEST(PackedLlamaTest, PiecesNeighboursAndThreadsChangeNoBit) {
  const std::vector<int32_t> ids = TestIds(90, 1, kVocabulary);
  for (const Setting& setting : Settings()) {
    PackedLlama reference = Make(setting);
    const at::Tensor expected = ServingSteps(reference).Whole(ids, 90);
    for (const int threads : {1, 3}) {
      PackedLlama decoder = Make(setting, threads);
      ServingSteps steps(decoder);
      for (const int64_t most : {1, 7, 16, 17, 64}) {
        EXPECT_TRUE(at::equal(steps.Whole(ids, most), expected)) << "in pieces of " << most;
      }
      const std::vector<int> sequences = {steps.Begin(), steps.Begin(), steps.Begin()};
      const std::vector<int32_t> before = TestIds(70, 2, kVocabulary);
      const std::vector<int32_t> behind = TestIds(33, 3, kVocabulary);
      const ServingSteps::Piece first{sequences[1], std::span(ids).first(25)};
      const at::Tensor head = steps.Step({&first, 1});
      const std::vector<ServingSteps::Piece> pieces = {{sequences[0], before},
                                                       {sequences[1], std::span(ids).subspan(25)},
                                                       {sequences[2], behind}};
      const at::Tensor rest = steps.Step(pieces).narrow(0, 70, 65);
      EXPECT_TRUE(at::equal(at::cat({head, rest}), expected));
    }
  }
}

TEST(PackedLlamaTest, SharedBlocksAndCopiesServeManySequences) {
  for (const Setting& setting : Settings()) {
    PackedLlama decoder = Make(setting);
    ServingSteps steps(decoder);
    const std::vector<int32_t> ids = TestIds(50, 1, kVocabulary);
    const int parent = steps.Begin();
    const ServingSteps::Piece whole{parent, ids};
    steps.Step({&whole, 1});
    const int child = steps.Fork(parent, 37);
    const std::vector<int32_t> other = TestIds(9, 5, kVocabulary);
    const ServingSteps::Piece piece{child, other};
    const at::Tensor logits = steps.Step({&piece, 1});
    std::vector<int32_t> branch(ids.begin(), ids.begin() + 37);
    branch.insert(branch.end(), other.begin(), other.end());
    EXPECT_TRUE(at::equal(logits, steps.Whole(branch, 100).narrow(0, 37, 9)));
  }
}

TEST(PackedLlamaTest, ProductsOfAStepDoNotGrowWithItsSequences) {
  PackedLlama decoder = Make(Settings()[0]);
  ServingSteps steps(decoder);
  const int64_t expected = 4 * decoder.config().num_layers + 1;
  for (const int count : {1, 2, 7}) {
    std::vector<ServingSteps::Piece> pieces;
    const std::vector<int32_t> ids = TestIds(3, 1, kVocabulary);
    for (int i = 0; i < count; ++i) pieces.push_back({steps.Begin(), ids});
    const int64_t before = decoder.num_products();
    steps.Step(pieces);
    EXPECT_EQ(decoder.num_products() - before, expected) << count;
  }
}

TEST(PackedLlamaTest, BehindTheLastAttentionOnlyWantedRowsAreComputed) {
  PackedLlama decoder = Make(Settings()[0]);
  ServingSteps steps(decoder);
  const std::vector<int32_t> ids = TestIds(20, 1, kVocabulary), blocks = {3, 1};
  const StepSequence sequence{.tokens = 20, .blocks = blocks};
  const int64_t before = decoder.num_products();
  decoder.Step(decoder.Embed(ids), {&sequence, 1}, {});
  // Of the last layer q, k and v alone, and no head.
  EXPECT_EQ(decoder.num_products() - before, 4 * decoder.config().num_layers - 3);
}

TEST(PackedLlamaTest, WantedRowsComeInTheirOrder) {
  PackedLlama decoder = Make(Settings()[0]);
  const std::vector<int32_t> ids = TestIds(20, 1, kVocabulary), blocks = {3, 1};
  const StepSequence sequence{.tokens = 20, .blocks = blocks};
  std::vector<int64_t> all(20);
  for (int64_t i = 0; i < 20; ++i) all[i] = i;
  const at::Tensor whole = decoder.Step(decoder.Embed(ids), {&sequence, 1}, all);
  const at::Tensor some =
      decoder.Step(decoder.Embed(ids), {&sequence, 1}, std::vector<int64_t>{19, 4});
  EXPECT_TRUE(at::equal(some[0], whole[19]));
  EXPECT_TRUE(at::equal(some[1], whole[4]));
  EXPECT_EQ(decoder.Step(decoder.Embed(ids), {&sequence, 1}, {}).size(0), 0);
}

TEST(PackedLlamaTest, RefusesWhatDoesNotFit) {
  PackedLlama decoder = Make(Settings()[0]);
  const std::vector<int32_t> ids = TestIds(17, 1, kVocabulary), beyond = {0, 40};
  const StepSequence sequence{.tokens = 17, .blocks = beyond};
  EXPECT_THROW(decoder.Step(decoder.Embed(ids), {&sequence, 1}, {}), std::invalid_argument);
  EXPECT_THROW(decoder.Embed(std::vector<int32_t>{1, 53}), std::invalid_argument);
  EXPECT_THROW(decoder.Embed(std::vector<int32_t>{-200}), std::invalid_argument);
  EXPECT_THROW(decoder.CopyBlock(0, 40), std::invalid_argument);
  EXPECT_THROW(Make(Settings()[0], 1, 0), std::invalid_argument);
}

}  // namespace
}  // namespace llava
