// expected/generation.json: greedy answers, their log-probabilities, prompts scored at once.

#include <algorithm>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/llava/generate.h"
#include "tests/model/llava/prompts.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

using nlohmann::json;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

std::string NameOf(const json& row) {
  return "generation/" + row.at("name").get<std::string>() + "/" +
         row.at("ids_style").get<std::string>() + "/";
}

std::vector<at::Tensor> FeaturesOf(const json& row) {
  if (row.at("image").is_null()) return {};
  EXPECT_EQ(row.at("image_mode"), "pad");
  return {Folder().Features(row.at("image"))};
}

void ExpectNear(const std::string& path, const std::vector<float>& found, const json& expected) {
  ASSERT_EQ(found.size(), expected.size()) << path;
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_TRUE(IsNear(path + "/" + std::to_string(i), found[i], expected[i].get<double>()));
  }
}

// Runs of U+FFFD as one: how many a broken character gives is left to the implementation.
std::string Collapse(std::string text) {
  const std::string mark = "\xEF\xBF\xBD";
  for (size_t at; (at = text.find(mark + mark)) != std::string::npos;) text.erase(at, mark.size());
  return text;
}

TEST(GenerationParityTest, PromptsBecomeTheirIds) {
  for (const json& row : Folder().Json("generation")) {
    const bool hf = row.at("ids_style") == "hf";
    const Tokenizer& tokenizer =
        hf ? Folder().Language("tiny-llava").tokenizer() : Folder().PlainTokenizer(false);
    const std::vector<int32_t> ids = IdsOf(row.at("prompt_ids"));
    EXPECT_EQ(tokenizer.EncodeWithImageMarks(row.at("prompt").get<std::string>()), ids)
        << NameOf(row);
    EXPECT_EQ(ExpandedLength(Folder().Language("orig-f32"), ids), row.at("prompt_len_after_image"));
  }
}

TEST(GenerationParityTest, GreedyIdsAndLogprobs) {
  for (const json& row : Folder().Json("generation")) {
    const std::vector<int32_t> expected = IdsOf(row.at("output_ids"));
    const StopOptions stop{.max_new_tokens = static_cast<uint32_t>(expected.size()),
                           .ignore_eos = true};
    const std::vector<int32_t> prompt = IdsOf(row.at("prompt_ids"));
    for (const std::string folder : {"orig-f32", "tiny-llava"}) {
      SCOPED_TRACE(NameOf(row) + folder);
      const GenerateResult result =
          Generate(Folder().Language(folder), prompt, FeaturesOf(row), {}, stop);
      EXPECT_EQ(result.ids, expected);
      EXPECT_EQ(result.state, Answer::State::kLength);
      const std::string key = folder == "orig-f32" ? "logprobs" : "logprobs_padded_vocab";
      ExpectNear(NameOf(row) + key,
                 ScoreAnswer(Folder().Language(folder), prompt, expected, FeaturesOf(row)),
                 row.at(key));
      EXPECT_EQ(Collapse(result.text), Collapse(row.at("text")));
      const std::string text_hf = row.at("text_hf");
      const bool broken = text_hf.find("\xEF\xBF\xBD") != std::string::npos;
      EXPECT_TRUE(broken || result.text == text_hf) << result.text;
    }
  }
}

TEST(GenerationParityTest, EndsAtAnOverriddenEndToken) {
  for (const json& row : Folder().Json("generation")) {
    const json& end = row.at("eos_override");
    const StopOptions stop{.max_new_tokens = static_cast<uint32_t>(row.at("output_ids").size()),
                           .stop_token_ids = {end.at("eos_token_id").get<int32_t>()},
                           .ignore_eos = true};
    const GenerateResult result = Generate(Folder().Language("orig-f32"),
                                           IdsOf(row.at("prompt_ids")), FeaturesOf(row), {}, stop);
    EXPECT_EQ(result.ids, IdsOf(end.at("output_ids"))) << NameOf(row);
    EXPECT_EQ(result.state, Answer::State::kStopped) << NameOf(row);
  }
}

// The distance between best and second logit, by one forward over prompt and answer.
TEST(GenerationParityTest, MarginsOfTheGreedyChoice) {
  at::NoGradGuard guard;
  const Llava& model = Folder().Language("orig-f32");
  for (const json& row : Folder().Json("generation")) {
    std::vector<int32_t> ids = IdsOf(row.at("prompt_ids"));
    const int64_t prompt = ExpandedLength(model, ids);
    const std::vector<int32_t> output = IdsOf(row.at("output_ids"));
    ids.insert(ids.end(), output.begin(), output.end() - 1);
    const at::Tensor embeddings = model.Embed(ids, FeaturesOf(row));
    const Segment segment{.tokens = embeddings.size(0)};
    const at::Tensor hidden = model.decoder().Forward(embeddings, {&segment, 1});
    const at::Tensor best =
        std::get<0>(model.decoder().Logits(hidden.narrow(0, prompt - 1, output.size())).topk(2));
    const at::Tensor margins = (best.select(1, 0) - best.select(1, 1)).cpu();
    const at::Tensor expected = at::tensor(row.at("top2_margin").get<std::vector<double>>());
    EXPECT_TRUE(IsNear(NameOf(row) + "logits_top2_margin", margins, expected));
    EXPECT_TRUE(IsNear(NameOf(row) + "logits_min_top2_margin", margins.min().item<double>(),
                       row.at("min_top2_margin").get<double>()));
  }
}

TEST(GenerationParityTest, PromptsScoredAtOnce) {
  int scored = 0;
  for (const json& row : Folder().Json("generation")) {
    if (!row.contains("prompt_logprobs")) continue;
    const json& expected = row.at("prompt_logprobs");
    const auto scores =
        ScoreTokens(Folder().Language("orig-f32"), IdsOf(row.at("prompt_ids")), FeaturesOf(row));
    ASSERT_EQ(scores.size(), expected.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      ASSERT_EQ(scores[i].has_value(), !expected[i].is_null()) << NameOf(row) << i;
      if (!scores[i]) continue;
      EXPECT_TRUE(IsNear(NameOf(row) + "prompt_logprobs/" + std::to_string(i), *scores[i],
                         expected[i].get<double>()));
      ++scored;
    }
  }
  EXPECT_GT(scored, 0);
}

}  // namespace
}  // namespace llava
