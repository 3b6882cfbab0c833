// expected/tokenization.json: text to ids and back, by every rule. Exact.

#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

using nlohmann::json;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

const json& Prompts() {
  const json& prompts = Folder().Json("tokenization").at("prompts");
  EXPECT_FALSE(prompts.empty());
  return prompts;
}

TEST(TokenizationParityTest, SlowTokenizerInBothModes) {
  for (const json& row : Prompts()) {
    const std::string text = row.at("text");
    for (const bool legacy : {true, false}) {
      const std::string mode = legacy ? "legacy_true" : "legacy_false";
      const Tokenizer& tokenizer = Folder().PlainTokenizer(legacy);
      EXPECT_EQ(tokenizer.Encode(text), IdsOf(row.at(mode))) << mode << ": " << row.at("text");
      EXPECT_EQ(tokenizer.EncodeWithImageMarks(text), IdsOf(row.at("image_marks_" + mode)))
          << mode << ": " << row.at("text");
    }
  }
}

TEST(TokenizationParityTest, PiecesHaveTheirIds) {
  const Tokenizer& tokenizer = Folder().PlainTokenizer(false);
  for (const json& row : Prompts()) {
    std::vector<int32_t> ids;
    for (const std::string piece : row.at("pieces_legacy_false"))
      ids.push_back(tokenizer.IdOf(piece));
    EXPECT_EQ(ids, IdsOf(row.at("legacy_false"))) << row.at("text");
  }
}

TEST(TokenizationParityTest, LlavaHfWithTheImageTokenInTheText) {
  const Llava& model = Folder().Language("tiny-llava");
  const int32_t image_token = Folder().Json("tokenization").at("image_token");
  EXPECT_EQ(model.tokenizer().IdOf("<image>"), image_token);
  EXPECT_EQ(model.tokenizer().IdOf("<pad>"), Folder().Json("tokenization").at("pad_token"));
  for (const json& row : Prompts()) {
    std::vector<int32_t> ids =
        model.tokenizer().EncodeWithImageMarks(row.at("text").get<std::string>());
    std::vector<int32_t> expanded;
    for (int32_t& id : ids) {
      const bool image = id == kImageToken;
      if (image) id = image_token;
      expanded.insert(expanded.end(), image ? model.num_image_tokens() : 1, id);
    }
    EXPECT_EQ(ids, IdsOf(row.at("hf"))) << row.at("text");
    EXPECT_EQ(expanded, IdsOf(row.at("hf_expanded"))) << row.at("text");
  }
}

TEST(TokenizationParityTest, IdsBackToText) {
  const Tokenizer& tokenizer = Folder().PlainTokenizer(false);
  for (const json& row : Prompts()) {
    const std::vector<int32_t> ids = IdsOf(row.at("decode_input"));
    EXPECT_EQ(tokenizer.Decode(ids, /*skip_special=*/true),
              row.at("decoded_hf_skip").get<std::string>());
    EXPECT_EQ(tokenizer.Decode(ids, /*skip_special=*/false),
              row.at("decoded_hf").get<std::string>());
    if (!row.contains("decoded_slow")) continue;  // made without the slow tokenizer
    EXPECT_EQ(tokenizer.Decode(ids, /*skip_special=*/true),
              row.at("decoded_slow_skip").get<std::string>());
    EXPECT_EQ(tokenizer.Decode(ids, /*skip_special=*/false),
              row.at("decoded_slow").get<std::string>());
  }
}

}  // namespace
}  // namespace llava
