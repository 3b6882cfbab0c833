// Greedy answers of the shipped model: of CudaLlama, in batches and in pieces, and of the plain
// decoder without a paged cache.

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/llava/generate.h"
#include "model/llava/llava.h"
#include "model/nn/cuda_llama.h"
#include "model/nn/step_rows.h"
#include "tests/model/ops/kernel_device.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

constexpr int64_t kBlocks = 64;
constexpr uint32_t kTokens = 24;

class CudaLlamaAnswersTest : public cuda::KernelTest {
 protected:
  void SetUp() override {
    cuda::KernelTest::SetUp();
    if (IsSkipped()) return;
    at::globalContext().setAllowTF32CuBLAS(false);
    checkpoint_ = OpenLanguage(std::filesystem::path(SourceDir()) / "deploy/models/emoji");
    model_.emplace(checkpoint_, at::kCPU, at::kFloat);
    features_ = checkpoint_.self_test->tensors.at("features")[0];
    for (const char* question :
         {"What is in the picture?", "Describe the picture.", "How many things do you see?"}) {
      const ChatMessage message{ChatMessage::Role::kUser, question, /*num_images=*/1, {}};
      prompts_.push_back(
          model_->tokenizer().EncodePrompt(model_->chat_template().Render({&message, 1})));
    }
  }

  CudaLlama Serving(at::ScalarType dtype) const {
    const DecoderConfig& config = checkpoint_.config.decoder;
    return {
        config,
        ToCuda(ReadDecoderWeights(config, checkpoint_.tensors, cuda::KernelDevice(), dtype, true)),
        {.kv_bytes = static_cast<uint64_t>(
             kBlocks * KvBlockBytes(config, static_cast<int64_t>(c10::elementSize(dtype))))}};
  }
  // Of each prompt, its embeddings [T, D].
  std::vector<at::Tensor> Embedded(at::ScalarType dtype) const {
    std::vector<at::Tensor> rows;
    for (const auto& prompt : prompts_) {
      rows.push_back(model_->Embed(prompt, {&features_, 1}).to(cuda::KernelDevice(), dtype));
    }
    return rows;
  }

  // All prompts side by side, of each at most `piece` tokens a step, then token by token.
  std::vector<std::vector<int32_t>> Answers(CudaLlama& decoder, int64_t piece) const {
    const std::vector<at::Tensor> prompts =
        Embedded(decoder.Embed(std::vector<int32_t>{0}).scalar_type());
    const int64_t each = kBlocks / static_cast<int64_t>(prompts.size());
    std::vector<std::vector<int32_t>> answers(prompts.size());
    std::vector<std::vector<int32_t>> blocks(prompts.size());
    std::vector<int64_t> computed(prompts.size());
    for (size_t i = 0; i < prompts.size(); ++i) {
      for (int64_t b = 0; b < each; ++b) {
        blocks[i].push_back(static_cast<int32_t>(b * prompts.size() + i));
      }
    }
    while (true) {
      std::vector<StepSequence> step;
      std::vector<at::Tensor> rows;
      std::vector<int64_t> wanted;
      std::vector<size_t> who;
      int64_t count = 0;
      for (size_t i = 0; i < prompts.size(); ++i) {
        if (answers[i].size() == kTokens) continue;
        const int64_t left = prompts[i].size(0) - computed[i];
        const int64_t tokens = left > 0 ? std::min(left, piece) : 1;
        rows.push_back(left > 0 ? prompts[i].narrow(0, computed[i], tokens)
                                : decoder.Embed(std::vector<int32_t>{answers[i].back()}));
        step.push_back({.tokens = tokens, .computed = computed[i], .blocks = blocks[i]});
        computed[i] += tokens;
        count += tokens;
        if (computed[i] < prompts[i].size(0)) continue;
        wanted.push_back(count - 1);
        who.push_back(i);
      }
      if (step.empty()) return answers;
      const at::Tensor logits = decoder.Step(at::cat(rows), step, wanted);
      for (size_t k = 0; k < who.size(); ++k) {
        answers[who[k]].push_back(static_cast<int32_t>(
            logits[k].narrow(0, 0, model_->num_known_ids()).argmax().item<int64_t>()));
      }
    }
  }

  LanguageCheckpoint checkpoint_;
  std::optional<Llava> model_;
  at::Tensor features_;
  std::vector<std::vector<int32_t>> prompts_;
};

TEST_F(CudaLlamaAnswersTest, AreThePlainDecodersInAnyPiecesAndBatches) {
  std::vector<std::vector<int32_t>> expected;
  for (const auto& prompt : prompts_) {
    expected.push_back(Generate(*model_, prompt, {&features_, 1}, {},
                                {.max_new_tokens = kTokens, .ignore_eos = true})
                           .ids);
    ASSERT_EQ(expected.back().size(), kTokens);
  }
  CudaLlama decoder = Serving(at::kFloat);
  for (const int64_t piece : {1000, 16, 7}) {
    EXPECT_EQ(Answers(decoder, piece), expected) << "in pieces of " << piece;
  }
}

// In 16 bits two words may be as good as each other; so the true ones are given and judged.
TEST_F(CudaLlamaAnswersTest, AreLikelyInBFloat16) {
  CudaLlama decoder = Serving(at::kBFloat16);
  const at::Tensor rows = Embedded(at::kBFloat16)[0];
  std::vector<int32_t> blocks;
  for (int32_t b = 0; b < kBlocks; ++b) blocks.push_back(b);
  const std::vector<int32_t> ids = Generate(*model_, prompts_[0], {&features_, 1}, {},
                                            {.max_new_tokens = kTokens, .ignore_eos = true})
                                       .ids;
  at::Tensor next = rows;
  int64_t computed = 0;
  for (const int32_t id : ids) {
    const StepSequence sequence{.tokens = next.size(0), .computed = computed, .blocks = blocks};
    const at::Tensor logits =
        decoder.Step(next, {&sequence, 1}, std::vector<int64_t>{next.size(0) - 1})[0];
    EXPECT_LT((logits.max() - logits[id]).item<float>(), 0.2) << "behind " << computed << " tokens";
    computed += next.size(0);
    next = decoder.Embed(std::vector<int32_t>{id});
  }
}

}  // namespace
}  // namespace llava
