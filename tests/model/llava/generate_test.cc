#include "model/llava/generate.h"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/llava/tiny_llava.h"
#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

const std::vector<int32_t> kPrompt = {1, kImageToken, 30, 31};
StopOptions Twenty() { return {.max_new_tokens = 20, .ignore_eos = true}; }

TEST(GenerateTest, EqualsTheGreedyChoiceOfAFullForwardEachTime) {
  const Llava model = TinyLlava();
  const std::vector<at::Tensor> features = {TinyFeatures(1)};
  const GenerateResult result = Generate(model, kPrompt, features, {}, Twenty());
  ASSERT_EQ(result.ids.size(), 20u);
  EXPECT_EQ(result.prompt_tokens, 12);
  EXPECT_EQ(result.state, Answer::State::kLength);
  at::NoGradGuard guard;
  std::vector<int32_t> ids = kPrompt;
  for (size_t i = 0; i < result.ids.size(); ++i) {
    const at::Tensor embeddings = model.Embed(ids, features);
    const Segment segment{.tokens = embeddings.size(0)};
    const at::Tensor logits =
        model.decoder().Logits(model.decoder().Forward(embeddings, {&segment, 1}))[-1];
    EXPECT_EQ(result.ids[i], logits.argmax().item<int64_t>()) << i;
    ids.push_back(result.ids[i]);
  }
}

TEST(GenerateTest, DrawsTheSameForTheSameSeed) {
  const Llava model = TinyLlava();
  const std::vector<at::Tensor> features = {TinyFeatures(1)};
  const auto draw = [&](uint64_t seed) {
    return Generate(model, kPrompt, features, {.temperature = 1.5f, .seed = seed}, Twenty()).ids;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(GenerateTest, IncludesTheStopTokenInIdsOnly) {
  const Llava model = TinyLlava();
  const std::vector<at::Tensor> features = {TinyFeatures(1)};
  const GenerateResult free = Generate(model, kPrompt, features, {}, Twenty());
  StopOptions stop = Twenty();
  stop.stop_token_ids = {free.ids[5]};
  const GenerateResult cut = Generate(model, kPrompt, features, {}, stop);
  const auto first = std::find(free.ids.begin(), free.ids.end(), free.ids[5]);
  EXPECT_EQ(cut.ids, std::vector<int32_t>(free.ids.begin(), first + 1));
  EXPECT_EQ(cut.state, Answer::State::kStopped);
}

TEST(GenerateTest, StopsWhenTheContextIsFull) {
  const Llava model = TinyLlava();
  const std::vector<int32_t> long_prompt(298, 7), full(300, 7), longer(301, 7);
  StopOptions stop = Twenty();
  const GenerateResult result = Generate(model, long_prompt, {}, {}, stop);
  EXPECT_EQ(result.ids.size(), 2u);
  EXPECT_EQ(result.state, Answer::State::kLength);
  EXPECT_THROW(Generate(model, full, {}, {}, stop), std::invalid_argument);
  EXPECT_THROW(Generate(model, longer, {}, {}, stop), std::invalid_argument);
  EXPECT_THROW(Generate(model, {}, {}, {}, stop), std::invalid_argument);
}

TEST(GeneratorTest, AnswersAsGenerateWhateverWasAskedBefore) {
  const Llava model = TinyLlava();
  const std::vector<at::Tensor> features = {TinyFeatures(1)};
  Generator generator(model, model.Project(features));
  std::vector<int32_t> follow_up = kPrompt;
  const auto first = Generate(model, kPrompt, features, {}, Twenty());
  follow_up.insert(follow_up.end(), first.ids.begin(), first.ids.end());
  follow_up.insert(follow_up.end(), {40, 41});
  const std::vector<std::vector<int32_t>> prompts = {
      kPrompt, follow_up, {1, kImageToken, 50}, kPrompt, {1, kImageToken}, {2, kImageToken, 30}};
  for (const std::vector<int32_t>& prompt : prompts) {
    const GenerateResult expected = Generate(model, prompt, features, {}, Twenty());
    const GenerateResult result = generator.Reply(prompt, {}, Twenty());
    EXPECT_EQ(result.ids, expected.ids);
    EXPECT_EQ(result.text, expected.text);
    EXPECT_EQ(result.prompt_tokens, expected.prompt_tokens);
  }
}

TEST(GeneratorTest, GoesOnAfterAPromptThatWasRefused) {
  const Llava model = TinyLlava();
  const std::vector<at::Tensor> features = {TinyFeatures(1)};
  Generator generator(model, model.Project(features));
  generator.Reply(kPrompt, {}, Twenty());
  const std::vector<int32_t> unknown = {1, kImageToken, 30, 99999}, no_picture = {1, 30};
  EXPECT_THROW(generator.Reply(unknown, {}, Twenty()), std::invalid_argument);
  EXPECT_THROW(generator.Reply(no_picture, {}, Twenty()), std::invalid_argument);
  EXPECT_EQ(generator.Reply(kPrompt, {}, Twenty()).ids,
            Generate(model, kPrompt, features, {}, Twenty()).ids);
}

TEST(GenerateTest, NeverDrawsPaddingRowsOfTheTable) {
  LanguageCheckpoint checkpoint = TinyLanguageCheckpoint();
  const int64_t known = checkpoint.tokenizer->vocab_size();
  DecoderConfig& config = checkpoint.config.decoder;
  config.vocab_size = known + 40;
  auto tensors = RandomDecoder(config);
  tensors["lm_head.weight"].narrow(0, 0, known).mul_(0.01);  // the padding would win
  tensors.merge(RandomProjector(checkpoint.config.projector));
  checkpoint.tensors = MemoryTensors(std::move(tensors));
  const Llava model(checkpoint, at::kCPU, at::kFloat);
  EXPECT_EQ(model.num_known_ids(), known);
  const std::vector<int32_t> prompt = {1, 30, 31};
  for (const float temperature : {0.0f, 2.0f}) {
    for (const int32_t id :
         Generate(model, prompt, {}, {.temperature = temperature}, Twenty()).ids) {
      EXPECT_LT(id, known);
    }
  }
}

}  // namespace
}  // namespace llava
