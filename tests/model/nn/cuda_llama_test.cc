// CudaLlama against the plain decoder, on a GPU or with its kernels emulated (kernel_device.h).

#include "model/nn/cuda_llama.h"

#include <cmath>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/nn/cuda_llama_parts.h"
#include "model/nn/cuda_weights.h"
#include "model/nn/packed_weights.h"
#include "model/nn/step_rows.h"
#include "model/nn/torch_serving_decoder.h"
#include "model/ops/cpu/thread_pool.h"
#include "model/ops/feature.h"
#include "tests/model/nn/serving_steps.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/ops/kernel_device.h"

namespace llava {
namespace {

constexpr int64_t kBlocks = 80;

class CudaLlamaTest : public cuda::KernelTest {
 protected:
  // One whose sizes suit 16-byte loads, and one of odd sizes.
  static DecoderConfig Even() {
    DecoderConfig config = TinyDecoderConfig();
    config.hidden_size = 64;
    config.intermediate_size = 88;
    config.num_heads = 4;
    config.num_kv_heads = 2;
    config.head_dim = 32;
    return config;
  }

  void SetUp() override {
    cuda::KernelTest::SetUp();
    at::globalContext().setAllowTF32CuBLAS(false);
  }

  static DecoderWeights Weights(const DecoderConfig& config, at::ScalarType dtype,
                                at::Device device) {
    return ReadDecoderWeights(config, MemoryTensors(RandomDecoder(config)), device, dtype,
                              /*join=*/true);
  }
  static CudaLlama Make(const DecoderConfig& config, at::ScalarType dtype,
                        CudaLlamaOptions options = {}) {
    options.kv_bytes = kBlocks * KvBlockBytes(config, c10::elementSize(dtype));
    return {config, ToCuda(Weights(config, dtype, cuda::KernelDevice())), options};
  }
  // In float32, whatever `dtype` the parameters are rounded to.
  static at::Tensor Expected(const DecoderConfig& config, at::ScalarType dtype,
                             std::span<const int32_t> ids) {
    DecoderWeights weights =
        ReadDecoderWeights(config, MemoryTensors(Rounded(config, dtype)), at::kCPU, at::kFloat);
    TorchServingDecoder decoder(config, std::move(weights), kBlocks);
    return ServingSteps(decoder).Whole(ids, static_cast<int64_t>(ids.size()));
  }
  static std::map<std::string, at::Tensor> Rounded(const DecoderConfig& config,
                                                   at::ScalarType dtype) {
    std::map<std::string, at::Tensor> tensors = RandomDecoder(config);
    for (auto& [name, tensor] : tensors) tensor = tensor.to(dtype).to(at::kFloat);
    return tensors;
  }
  // What packed weights stand for, in float32.
  static DecoderWeights PlainWeights(const DecoderConfig& config,
                                     const PackedDecoderWeights& packed) {
    const auto matrix = [](const ops::cpu::PackedMatrix& from) {
      return CudaMatrix(from, cuda::KernelDevice()).Dense(at::kFloat).cpu();
    };
    const auto vector = [](const std::vector<float>& from) { return at::tensor(from, at::kFloat); };
    const int64_t q = config.num_heads * config.head_dim,
                  kv = config.num_kv_heads * config.head_dim;
    DecoderWeights weights{.embed_tokens = packed.embedding.to(at::kFloat),
                           .norm = vector(packed.norm),
                           .lm_head = matrix(packed.lm_head),
                           .layers = {}};
    for (const PackedLayer& layer : packed.layers) {
      const at::Tensor qkv = matrix(layer.qkv), gate_up = matrix(layer.gate_up);
      weights.layers.push_back(
          {.input_norm = vector(layer.input_norm),
           .post_attention_norm = vector(layer.post_attention_norm),
           .q = qkv.narrow(0, 0, q),
           .k = qkv.narrow(0, q, kv),
           .v = qkv.narrow(0, q + kv, kv),
           .o = matrix(layer.o),
           .gate = gate_up.narrow(0, 0, config.intermediate_size),
           .up = gate_up.narrow(0, config.intermediate_size, config.intermediate_size),
           .down = matrix(layer.down)});
    }
    return weights;
  }
  static double BoundOf(at::ScalarType dtype) { return dtype == at::kFloat ? 2e-4 : 0.15; }
};

TEST_F(CudaLlamaTest, StepsGoOnWithoutRecordingsThatHaveNoMemory) {
  const DecoderConfig config = Even();
  CudaLlama decoder = Make(config, at::kFloat);
  ServingSteps steps(decoder);
  const std::vector<int32_t> ids = TestIds(40, 1, config.vocab_size);
  const at::Tensor expected = Expected(config, at::kFloat, ids);
  cuda::RefuseGraphs(true);
  const at::Tensor without = steps.Whole(ids, 1);
  cuda::RefuseGraphs(false);
  EXPECT_LT(MaxDifference(without, expected), BoundOf(at::kFloat));
}

TEST_F(CudaLlamaTest, RecordsAheadWhatStepsWillAskFor) {
  const DecoderConfig config = Even();
  CudaLlama decoder = Make(config, at::kFloat);
  ServingSteps steps(decoder);
  // A sequence from before: its blocks stay as they are.
  const std::vector<int32_t> ids = TestIds(150, 1, config.vocab_size);
  const at::Tensor expected = Expected(config, at::kFloat, ids);
  const int first = steps.Begin();
  const ServingSteps::Piece begun{first, std::span(ids).first(100)};
  steps.Step({&begun, 1});

  int pieces = 0;
  decoder.Prepare(5, 300, [&](const std::function<void()>& compute) {
    ++pieces;
    compute();
  });
  EXPECT_EQ(pieces, 4 * 3);  // 1, 2, 4 and 8 sequences; 1, 2 and 4 stretches
  EXPECT_EQ(decoder.num_graphs(), 4 * 3);

  for (int i = 1; i < 5; ++i) steps.Begin();
  for (size_t step = 0; step < 50; ++step) {
    std::vector<ServingSteps::Piece> now;
    for (int i = 0; i <= static_cast<int>(step) / 10; ++i) {
      now.push_back({i, std::span(ids).subspan(i == 0 ? 100 + step : step, 1)});
    }
    const at::Tensor logits = steps.Step(now);
    EXPECT_LT(MaxDifference(logits[0], expected[static_cast<int64_t>(100 + step)]), 2e-4) << step;
  }
  EXPECT_EQ(decoder.num_graphs(), 4 * 3);  // of 1 to 5 sequences, behind up to 150 tokens

  // No more than there are positions and blocks for, and none if none are wanted.
  const auto alone = [](const std::function<void()>& compute) { compute(); };
  decoder.Prepare(1, 1'000'000, alone);
  EXPECT_EQ(decoder.num_graphs(), 4 * 3);
  CudaLlama small(config, ToCuda(Weights(config, at::kFloat, cuda::KernelDevice())),
                  {.kv_bytes = static_cast<uint64_t>(10 * KvBlockBytes(config, 4))});
  small.Prepare(1, 300, alone);
  EXPECT_EQ(small.num_graphs(), 2);  // 160 tokens
  CudaLlama plain = Make(config, at::kFloat, {.graphs = false});
  plain.Prepare(5, 300, alone);
  EXPECT_EQ(plain.num_graphs(), 0);
}

TEST_F(CudaLlamaTest, ChoosesAmongProductsThatAgree) {
  const DecoderConfig config = Even();
  const std::vector<int32_t> ids = TestIds(40, 1, config.vocab_size);
  const at::Tensor expected = Expected(config, at::kBFloat16, ids);
  for (const bool stream : {true, false}) {
    ops::Enable(ops::Feature::kStream, stream);
    CudaLlama decoder = Make(config, at::kBFloat16);
    ops::Enable(ops::Feature::kStream, true);
    EXPECT_EQ(decoder.streamed(), stream ? std::set<int64_t>{1} : std::set<int64_t>{});
    ServingSteps steps(decoder);
    EXPECT_LT(MaxDifference(steps.Whole(ids, 1), expected), BoundOf(at::kBFloat16));
    int pieces = 0;
    const std::string measured = decoder.Prepare(2, 128, [&](const std::function<void()>& compute) {
      ++pieces;
      compute();
    });
    // The products of one sequence are measured, in short pieces; either may be quicker here.
    EXPECT_EQ(measured.find("steps of 1: "), stream ? 0 : std::string::npos) << measured;
    EXPECT_EQ(measured.find("wrong"), std::string::npos) << measured;
    EXPECT_EQ(pieces, (stream ? 2 + 2 * 5 + 1 : 0) + 2);
    EXPECT_EQ(decoder.num_graphs(), 2);
    EXPECT_LT(MaxDifference(steps.Whole(ids, 1), expected), BoundOf(at::kBFloat16));
  }
  // Without memory for recordings nothing is measured.
  if (cuda::RefuseGraphs(true)) {
    CudaLlama decoder = Make(config, at::kBFloat16);
    EXPECT_EQ(decoder.Prepare(1, 128, [](const auto& compute) { compute(); }), "");
    EXPECT_EQ(decoder.streamed(), std::set<int64_t>{1});
    cuda::RefuseGraphs(false);
  }
  // Only bfloat16 has such products.
  EXPECT_TRUE(Make(config, at::kFloat).streamed().empty());
}

TEST_F(CudaLlamaTest, ChoosesAmongPackedProductsThatAgree) {
  const DecoderConfig config = Even();
  ops::cpu::ThreadPool pool(1);
  const PackedDecoderWeights packed =
      PackDecoder(config, MemoryTensors(RandomDecoder(config)),
                  PackOptions{ops::cpu::WeightFormat::kInt4, 64, true}, pool);
  CudaLlama decoder(config, ToCuda(packed, cuda::KernelDevice()),
                    {.kv_bytes = static_cast<uint64_t>(kBlocks * KvBlockBytes(config, 2))});
  const std::string measured = decoder.Prepare(8, 128, [](const auto& compute) { compute(); });
  for (const char* size : {"1: ", "2: ", "4: ", "8: "}) {
    EXPECT_NE(measured.find(size), std::string::npos) << measured;
  }
  EXPECT_EQ(measured.find("wrong"), std::string::npos) << measured;
}

TEST_F(CudaLlamaTest, TellsRoundingFromOtherNumbers) {
  const at::Tensor numbers = at::arange(1000, at::kFloat) - 500;
  EXPECT_EQ(RelativeDistance(numbers, numbers.clone()), 0);
  EXPECT_LT(RelativeDistance(numbers, numbers.to(at::kBFloat16).to(at::kFloat)), 0.01);
  EXPECT_GT(RelativeDistance(numbers, numbers.roll(1)), 0.001);
  EXPECT_NEAR(RelativeDistance(numbers, numbers.flip(0)), 2, 0.01);
  at::Tensor spoilt = numbers.clone();
  spoilt[7] = NAN;
  EXPECT_EQ(RelativeDistance(numbers, spoilt), HUGE_VAL);
  EXPECT_EQ(RelativeDistance(spoilt, numbers), 0);
}

TEST_F(CudaLlamaTest, AnyPiecesGiveWhatThePlainDecoderGives) {
  for (const DecoderConfig& config : {Even(), TinyDecoderConfig()}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const bool graphs : {true, false}) {
        CudaLlama decoder = Make(config, dtype, {.graphs = graphs});
        ASSERT_EQ(decoder.num_blocks(), kBlocks);
        ServingSteps steps(decoder);
        const std::vector<int32_t> ids = TestIds(150, 1, config.vocab_size);
        const at::Tensor expected = Expected(config, dtype, ids);
        for (const int64_t most : {1, 33, 128, 150}) {
          const at::Tensor logits = steps.Whole(ids, most);
          ASSERT_EQ(logits.sizes(), expected.sizes());
          EXPECT_EQ(logits.scalar_type(), at::kFloat);
          EXPECT_TRUE(logits.is_cpu());
          EXPECT_LT(MaxDifference(logits, expected), BoundOf(dtype))
              << dtype << " width " << config.hidden_size << " in pieces of " << most
              << (graphs ? " with" : " without") << " graphs";
        }
      }
    }
  }
}

TEST_F(CudaLlamaTest, MixedStepsDoNotMixSequences) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const DecoderConfig config = Even();
    CudaLlama decoder = Make(config, dtype);
    ServingSteps steps(decoder);
    std::vector<std::vector<int32_t>> ids;
    std::vector<int> sequences;
    std::vector<std::vector<at::Tensor>> parts(5);
    std::vector<size_t> done(5);
    for (int i = 0; i < 5; ++i) {
      ids.push_back(TestIds(60 + i, 2 + i, config.vocab_size));
      sequences.push_back(steps.Begin());
    }
    const std::vector<std::vector<size_t>> plan = {{40, 1, 0, 7, 0}, {1, 30, 18, 1, 2},
                                                   {1, 1, 1, 1, 1},  {0, 1, 1, 1, 0},
                                                   {1, 1, 25, 1, 1}, {1, 1, 1, 1, 1}};
    for (const std::vector<size_t>& tokens : plan) {
      std::vector<ServingSteps::Piece> pieces;
      for (int i = 0; i < 5; ++i) {
        if (tokens[i] == 0) continue;
        pieces.push_back({sequences[i], std::span(ids[i]).subspan(done[i], tokens[i])});
        done[i] += tokens[i];
      }
      const at::Tensor logits = steps.Step(pieces);
      int64_t begin = 0;
      for (int i = 0; i < 5; ++i) {
        parts[i].push_back(logits.narrow(0, begin, static_cast<int64_t>(tokens[i])));
        begin += static_cast<int64_t>(tokens[i]);
      }
    }
    for (int i = 0; i < 5; ++i) {
      const at::Tensor found = at::cat(parts[i]);
      const at::Tensor expected = Expected(config, dtype, std::span(ids[i]).first(done[i]));
      EXPECT_LT(MaxDifference(found, expected), BoundOf(dtype)) << dtype << " sequence " << i;
    }
  }
}

TEST_F(CudaLlamaTest, DecodesLargeBatchesWithPaddingAndBeyondTheGraphs) {
  const DecoderConfig config = Even();
  for (const int count : {3, 17, 66}) {
    CudaLlama decoder = Make(config, at::kFloat);
    ServingSteps steps(decoder);
    std::vector<std::vector<int32_t>> ids;
    for (int i = 0; i < count; ++i) {
      ids.push_back(TestIds(3, i, config.vocab_size));
      steps.Begin();
    }
    std::vector<at::Tensor> rounds;
    for (int step = 0; step < 3; ++step) {
      std::vector<ServingSteps::Piece> pieces;
      for (int i = 0; i < count; ++i) pieces.push_back({i, std::span(ids[i]).subspan(step, 1)});
      rounds.push_back(steps.Step(pieces));
    }
    for (int i = 0; i < count; i += 5) {
      const at::Tensor found = at::stack({rounds[0][i], rounds[1][i], rounds[2][i]});
      EXPECT_LT(MaxDifference(found, Expected(config, at::kFloat, ids[i])), 2e-4)
          << i << " of " << count;
    }
  }
}

TEST_F(CudaLlamaTest, SharedBlocksAndCopiesServeManySequences) {
  const DecoderConfig config = Even();
  CudaLlama decoder = Make(config, at::kFloat);
  ServingSteps steps(decoder);
  std::vector<int32_t> ids = TestIds(50, 1, config.vocab_size);
  const int parent = steps.Begin();
  const ServingSteps::Piece whole{parent, ids};
  steps.Step({&whole, 1});
  const int child = steps.Fork(parent, 37);
  const std::vector<int32_t> other = TestIds(9, 5, config.vocab_size);
  const std::vector<int32_t> more = TestIds(1, 6, config.vocab_size);
  const std::vector<ServingSteps::Piece> pieces = {{child, other}, {parent, more}};
  const at::Tensor logits = steps.Step(pieces);
  std::vector<int32_t> branch(ids.begin(), ids.begin() + 37);
  branch.insert(branch.end(), other.begin(), other.end());
  ids.push_back(more[0]);
  EXPECT_LT(
      MaxDifference(logits.narrow(0, 0, 9), Expected(config, at::kFloat, branch).narrow(0, 37, 9)),
      2e-4);
  EXPECT_LT(MaxDifference(logits[9], Expected(config, at::kFloat, ids)[50]), 2e-4);
}

TEST_F(CudaLlamaTest, GivesTheWantedRowsInTheirOrder) {
  const DecoderConfig config = Even();
  CudaLlama decoder = Make(config, at::kFloat);
  const std::vector<int32_t> ids = TestIds(20, 1, config.vocab_size), blocks = {3, 1};
  const at::Tensor expected = Expected(config, at::kFloat, ids);
  const StepSequence sequence{.tokens = 20, .blocks = blocks};
  const at::Tensor logits =
      decoder.Step(decoder.Embed(ids), {&sequence, 1}, std::vector<int64_t>{19, 4});
  EXPECT_LT(MaxDifference(logits, at::stack({expected[19], expected[4]})), 2e-4);
  EXPECT_EQ(decoder.Step(decoder.Embed(ids), {&sequence, 1}, {}).sizes(), (at::IntArrayRef{0, 53}));
  // Two sequences with a token each, of which one is wanted.
  const std::vector<int32_t> first = {ids[0]}, pair = {ids[19], ids[0]}, single = {7};
  const std::vector<StepSequence> step = {{.tokens = 1, .computed = 19, .blocks = blocks},
                                          {.tokens = 1, .blocks = single}};
  const at::Tensor one = decoder.Step(decoder.Embed(pair), step, std::vector<int64_t>{1});
  ASSERT_EQ(one.sizes(), (at::IntArrayRef{1, 53}));
  EXPECT_LT(MaxDifference(one[0], expected[0]), 2e-4);
}

// A checkpoint of packed integers means the same here as on the CPU, which rounds what it
// multiplies them by to integers, too.
TEST_F(CudaLlamaTest, ServesPackedIntegers) {
  for (const DecoderConfig& config : {Even(), TinyDecoderConfig()}) {
    for (const PackOptions& options : {PackOptions{ops::cpu::WeightFormat::kInt8, 128, true},
                                       PackOptions{ops::cpu::WeightFormat::kInt4, 32, true},
                                       PackOptions{ops::cpu::WeightFormat::kInt4, 64, true}}) {
      ops::cpu::ThreadPool pool(1);
      const TensorSource tensors = MemoryTensors(RandomDecoder(config));
      const PackedDecoderWeights packed = PackDecoder(config, tensors, options, pool);
      CudaLlama decoder(config, ToCuda(packed, cuda::KernelDevice()),
                        {.kv_bytes = static_cast<uint64_t>(kBlocks * KvBlockBytes(config, 2))});
      EXPECT_TRUE(decoder.weights().layers[0].down.is_packed());
      const bool streams = ops::Enabled(ops::Feature::kStream);
      EXPECT_EQ(decoder.streamed(),
                streams ? (std::set<int64_t>{1, 2, 4, 8}) : std::set<int64_t>{});
      ServingSteps steps(decoder);
      const std::vector<int32_t> ids = TestIds(140, 1, config.vocab_size);
      TorchServingDecoder plain(config, PlainWeights(config, packed), kBlocks);
      const at::Tensor expected = ServingSteps(plain).Whole(ids, 140);
      for (const int64_t most : {1, 33, 140}) {
        EXPECT_LT(MaxDifference(steps.Whole(ids, most), expected), BoundOf(at::kBFloat16))
            << ToQuantization(options).Describe() << " width " << config.hidden_size
            << " in pieces of " << most;
      }
    }
  }
}

TEST_F(CudaLlamaTest, CountsItsWeightsAndRefusesWhatItCannotDo) {
  const DecoderConfig config = Even();
  int64_t values = 0;
  for (const auto& [name, tensor] : RandomDecoder(config)) values += tensor.numel();
  CudaLlama decoder = Make(config, at::kBFloat16);
  EXPECT_EQ(decoder.weight_bytes(), static_cast<uint64_t>(2 * values));
  EXPECT_THROW(Make(config, at::kHalf), std::invalid_argument);
  EXPECT_THROW(
      CudaLlama(config, ToCuda(Weights(config, at::kFloat, cuda::KernelDevice())), {.kv_bytes = 9}),
      std::invalid_argument);
  EXPECT_THROW(decoder.CopyBlock(0, kBlocks), std::invalid_argument);
  for (const auto wrong : {static_cast<int32_t>(config.vocab_size), -1}) {
    EXPECT_THROW(decoder.Embed(std::vector<int32_t>{1, wrong}), std::invalid_argument);
  }
  const std::vector<int32_t> ids = {1}, spare = {kBlocks};
  const StepSequence sequence{.tokens = 1, .blocks = spare};
  EXPECT_THROW(decoder.Step(decoder.Embed(ids), {&sequence, 1}, {}), std::invalid_argument);
}

}  // namespace
}  // namespace llava
