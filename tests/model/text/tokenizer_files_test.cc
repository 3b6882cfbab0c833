#include <algorithm>
#include <filesystem>
#include <span>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "model/text/tokenizer.h"
#include "tests/model/text/text_fixtures.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

class TokenizerFilesTest : public testing::Test {
 protected:
  void Write(const std::string& name, std::string_view content) { temp_.Write(name, content); }
  void WriteModel() { Write("tokenizer.model", FixtureTokenizer(true).model_bytes()); }
  void ExpectRefused(const std::string& why) {
    try {
      Tokenizer::Load(folder_);
      ADD_FAILURE() << "loaded; expected: " << why;
    } catch (const std::runtime_error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(why));
      EXPECT_THAT(e.what(), testing::HasSubstr(folder_.string()));
    }
  }
  const TempFolder temp_;
  const fs::path& folder_ = temp_.path();
};

TEST_F(TokenizerFilesTest, LoadsTheFoldersOfTheFixtures) {
  const Tokenizer original = Tokenizer::Load(FixturesDir() / "orig-f32");
  EXPECT_FALSE(original.options().legacy);
  EXPECT_FALSE(original.options().image_inline);
  EXPECT_TRUE(original.options().added_tokens.empty());
  const Tokenizer hf = Tokenizer::Load(FixturesDir() / "tiny-llava");
  EXPECT_TRUE(hf.options().image_inline);
  EXPECT_EQ(hf.options().added_tokens.size(), 2u);
}

TEST_F(TokenizerFilesTest, TheModelAloneIsEnough) {
  WriteModel();
  const Tokenizer tokenizer = Tokenizer::Load(folder_);
  EXPECT_TRUE(tokenizer.options().legacy);
  EXPECT_TRUE(tokenizer.options().add_bos);
  EXPECT_EQ(tokenizer.digest(), FixtureTokenizer(true).digest());
}

TEST_F(TokenizerFilesTest, WhatIsWrittenIsReadAgain) {
  const int32_t size = FixtureTokenizer(true).vocab_size();
  for (int bits = 0; bits < 16; ++bits) {
    TokenizerOptions options;
    options.legacy = bits & 1;
    options.add_bos = bits & 2;
    options.image_inline = bits & 4;
    if (bits & 8)
      options.added_tokens = {{"<image>", size + 9},
                              {"\"quoted\" é", size},
                              {"▁the", FixtureTokenizer(true).IdOf("▁the")}};
    const Tokenizer tokenizer(FixtureTokenizer(true).model_bytes(), options);
    Write("tokenizer.model", tokenizer.model_bytes());
    Write("tokenizer_config.json", tokenizer.ConfigJson());
    const Tokenizer again = Tokenizer::Load(folder_);
    EXPECT_EQ(again.digest(), tokenizer.digest()) << tokenizer.ConfigJson();
    EXPECT_EQ(again.options().legacy, options.legacy);
    EXPECT_EQ(again.options().add_bos, options.add_bos);
    EXPECT_EQ(again.options().image_inline, options.image_inline);
    EXPECT_EQ(again.options().added_tokens, tokenizer.options().added_tokens);
    EXPECT_EQ(again.Encode("the red\"quoted\" é<image>"),
              tokenizer.Encode("the red\"quoted\" é<image>"));
  }
}

TEST_F(TokenizerFilesTest, ReadsAddedTokensOfBothFiles) {
  WriteModel();
  const int32_t size = FixtureTokenizer(true).vocab_size();
  Write("tokenizer_config.json",
        R"({"legacy": null, "bos_token": {"content": "<s>"}, "eos_token": "",
      "added_tokens_decoder": {"2": {"content": "</s>"}, ")" +
            std::to_string(size) + R"(": {"content": "<a>"}}})");
  Write("added_tokens.json",
        R"({"<a>": )" + std::to_string(size) + R"(, "<b>": )" + std::to_string(size + 1) + "}");
  const Tokenizer tokenizer = Tokenizer::Load(folder_);
  EXPECT_EQ(tokenizer.options().added_tokens.size(), 2u);
  EXPECT_EQ(tokenizer.Encode("<b>"), (std::vector<int32_t>{1, size + 1}));
  EXPECT_TRUE(tokenizer.IsSpecial(size));
  EXPECT_EQ(tokenizer.Decode(std::vector<int32_t>{size}, false), "<a>");
}

// transformers fills such gaps without a word; a model may say their ids.
TEST_F(TokenizerFilesTest, GapsBetweenIdsAreSpecialTokensWithoutText) {
  WriteModel();
  const int32_t size = FixtureTokenizer(true).vocab_size();
  Write("added_tokens.json", R"({"<a>": )" + std::to_string(size + 5) + "}");
  const Tokenizer tokenizer = Tokenizer::Load(folder_);
  EXPECT_EQ(tokenizer.vocab_size(), size + 6);
  for (int32_t id = size; id < size + 5; ++id) {
    EXPECT_TRUE(tokenizer.IsSpecial(id));
    EXPECT_EQ(tokenizer.TokenBytes(id), "");
    EXPECT_EQ(StreamDecoder(tokenizer).Push(id), "");
  }
  EXPECT_EQ(tokenizer.Decode(std::vector<int32_t>{size + 4, size + 5}, false), "<a>");
  EXPECT_THROW(tokenizer.TokenBytes(size + 6), std::out_of_range);
}

// As of LLaVA-1.6-34B, whose answers end with <|im_end|>.
TEST_F(TokenizerFilesTest, AnotherPieceMayBeTheEndToken) {
  WriteModel();
  const Tokenizer plain = FixtureTokenizer(true);
  Write("tokenizer_config.json", R"({"eos_token": {"content": "▁the"}})");
  const Tokenizer tokenizer = Tokenizer::Load(folder_);
  EXPECT_EQ(tokenizer.eos_id(), plain.IdOf("▁the"));
  EXPECT_TRUE(tokenizer.IsSpecial(tokenizer.eos_id()));
  EXPECT_TRUE(tokenizer.IsSpecial(plain.eos_id())) << "remains what it was";
  EXPECT_EQ(tokenizer.Encode("</s>"), (std::vector<int32_t>{plain.bos_id(), plain.eos_id()}));
  const PromptSpan theirs{PromptSpan::Kind::kUser, "the the", {}};
  EXPECT_THAT(tokenizer.EncodePrompt(std::span(&theirs, 1)),
              testing::Not(testing::Contains(tokenizer.eos_id())));
  EXPECT_NE(tokenizer.digest(), plain.digest());
  Write("tokenizer_config.json", tokenizer.ConfigJson());
  EXPECT_EQ(Tokenizer::Load(folder_).digest(), tokenizer.digest());
  Write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  EXPECT_EQ(Tokenizer::Load(folder_).digest(), plain.digest());
}

TEST_F(TokenizerFilesTest, SaysWhichFileIsWrongAndWhy) {
  ExpectRefused("there is no such file");
  Write("tokenizer.model", "nonsense");
  ExpectRefused("tokenizer.model: not a usable");
  WriteModel();
  Write("tokenizer_config.json", "{");
  ExpectRefused("tokenizer_config.json");
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  for (const auto& [text, why] : std::vector<std::pair<std::string, std::string>>{
           {R"({"legacy": "yes"})", "legacy: expected true or false, found string"},
           {"[]", "the file: expected an object, found array"},
           {R"({"added_tokens_decoder": []})",
            "added_tokens_decoder: expected an object, found array"},
           {R"({"added_tokens_decoder": {"5000": "<a>"}})",
            "added_tokens_decoder.5000: expected an object, found string"},
           {R"({"added_tokens_decoder": {"5000": {}}})", "\"content\" is missing"},
           {R"({"added_tokens_decoder": {"5000": {"content": 5}}})",
            "added_tokens_decoder.5000.content: expected a text, found number"},
           {R"({"bos_token": 1})", "bos_token: expected a text, found number"},
           {R"({"legacy": )" + deep + "}", "more than 200 levels"}}) {
    Write("tokenizer_config.json", text);
    ExpectRefused("tokenizer_config.json: ");
    ExpectRefused(why);
  }
  Write("tokenizer_config.json", "{}");
  for (const auto& [text, why] : std::vector<std::pair<std::string, std::string>>{
           {"[5000]", "the file: expected an object, found array"},
           {R"({"<a>": 5000.5})", "the id of \"<a>\": expected an integer, found number"},
           {R"({"<a>": true})", "expected an integer, found boolean"},
           {R"({"<a>": 2147483647})", "impossible id 2147483647"},
           {R"({"<a>": -1})", "impossible id -1"},
           {R"({"<a>": )" + deep + "}", "more than 200 levels"}}) {
    Write("added_tokens.json", text);
    ExpectRefused("added_tokens.json: ");
    ExpectRefused(why);
  }
  fs::remove(folder_ / "added_tokens.json");
  Write("tokenizer_config.json", R"({"added_tokens_decoder": null, "llava_image_inline": null})");
  EXPECT_FALSE(Tokenizer::Load(folder_).options().image_inline) << "null counts as missing";
  Write("tokenizer_config.json", R"({"add_eos_token": true})");
  ExpectRefused("add_eos_token");
  Write("tokenizer_config.json", R"({"add_prefix_space": false})");
  ExpectRefused("add_prefix_space");
  Write("tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  ExpectRefused("eos_token is \"<|im_end|>\"");
  Write("tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "<a>"}}})");
  ExpectRefused("no token id");
  Write("tokenizer_config.json",
        R"({"added_tokens_decoder": {"5000": {"content": "<a>", "lstrip": true}}})");
  ExpectRefused("lstrip");
  Write("tokenizer_config.json", R"({"added_tokens_decoder": {"5000": {"content": "<a>"}}})");
  Write("added_tokens.json", R"({"<a>": 5001})");
  ExpectRefused("another id");
}

using nlohmann::json;

// The fixture llava-hf with other steps in its tokenizer.json.
class FastTokenizerTest : public TokenizerFilesTest {
 protected:
  void SetUp() override {
    for (const char* name : {"tokenizer.model", "tokenizer_config.json", "added_tokens.json"}) {
      Write(name, ReadBytes(FixturesDir() / "tiny-llava" / name));
    }
  }
  void WriteSteps(const json& normalizer, const json& pre_tokenizer) {
    json file = json::parse(ReadBytes(FixturesDir() / "tiny-llava" / "tokenizer.json"));
    file["normalizer"] = normalizer;
    file["pre_tokenizer"] = pre_tokenizer;
    Write("tokenizer.json", file.dump());
  }
  const json prepend_ = {{"type", "Prepend"}, {"prepend", "▁"}};
  const json replace_ = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  static json Sequence(const char* list, json steps) {
    return {{"type", "Sequence"}, {list, std::move(steps)}};
  }
  static json Metaspace(const char* scheme) {
    return {
        {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", false}};
  }
};

// Ids of the library `tokenizers` 0.23 from the same files.
TEST_F(FastTokenizerTest, DummyPrefixesStandWhereTokenizerJsonHasThem) {
  using Ids = std::vector<int32_t>;
  struct Case {
    std::string text;
    Ids prepend, always, first;
  };
  const std::vector<Case> cases = {
      {"USER: <image>\nWhat is it? ASSISTANT:",
       {1,   677, 947, 902, 933, 904, 1000, 904, 13,  966, 647,
        294, 371, 967, 368, 947, 947, 903,  937, 941, 781, 933},
       {1,   677, 947, 902, 933, 904, 1000, 904, 13,  966, 647,
        294, 371, 967, 368, 947, 947, 903,  937, 941, 781, 933},
       {1,   677, 947, 902, 933, 904, 1000, 13,  966, 647, 294,
        371, 967, 368, 947, 947, 903, 937,  941, 781, 933}},
      {"<image> What", {1, 1000, 259, 966, 647}, {1, 1000, 602, 647}, {1, 1000, 602, 647}},
      {"</s> \nUSER",
       {1, 2, 259, 13, 970, 947, 902},
       {1, 2, 904, 13, 970, 947, 902},
       {1, 2, 904, 13, 970, 947, 902}},
      {"<image><image>\n  two",
       {1, 1000, 1000, 904, 13, 259, 906, 558},
       {1, 1000, 1000, 904, 13, 259, 906, 558},
       {1, 1000, 1000, 13, 259, 906, 558}},
      {"<image>▁x<image>\t<image> ",
       {1, 1000, 259, 932, 1000, 904, 12, 1000, 259},
       {1, 1000, 904, 932, 1000, 904, 12, 1000, 904},
       {1, 1000, 904, 932, 1000, 12, 1000, 904}},
      {" \n<image>", {1, 259, 13, 1000}, {1, 904, 13, 1000}, {1, 904, 13, 1000}},
      {"", {1}, {1}, {1}}};
  const auto check = [&](Ids Case::*expected, const char* what) {
    const Tokenizer tokenizer = Tokenizer::Load(folder_);
    // A version keeps it without the file.
    const TempFolder published;
    published.Write("tokenizer.model", tokenizer.model_bytes());
    published.Write("tokenizer_config.json", tokenizer.ConfigJson());
    const Tokenizer again = Tokenizer::Load(published.path());
    EXPECT_EQ(again.digest(), tokenizer.digest());
    for (const Case& each : cases) {
      EXPECT_EQ(tokenizer.Encode(each.text), each.*expected) << what << ": " << each.text;
      EXPECT_EQ(again.Encode(each.text), each.*expected) << what << ", again: " << each.text;
      Ids prompt = tokenizer.EncodeWithImageMarks(each.text);
      std::replace(prompt.begin(), prompt.end(), kImageToken, 1000);
      EXPECT_EQ(prompt, each.*expected) << what << ", a prompt: " << each.text;
    }
  };
  WriteSteps(Sequence("normalizers", {prepend_, replace_}), nullptr);  // llava-1.5-7b-hf
  check(&Case::prepend, "sequence");
  WriteSteps(prepend_, Metaspace("first"));
  check(&Case::prepend, "alone");
  // The model file may want none, which other programs do not ask then.
  Write("tokenizer.model",
        ReadBytes(folder_ / "tokenizer.model") + std::string("\x1A\x02\x18\0", 4));
  check(&Case::prepend, "a model without a dummy prefix");
  EXPECT_EQ(Tokenizer::Load(folder_).Decode(cases[0].prepend), "USER:  \nWhat is it? ASSISTANT:");
  WriteSteps(nullptr, Metaspace("always"));
  check(&Case::always, "always");
  json older = Metaspace("always");
  older.erase("prepend_scheme");
  WriteSteps(nullptr, Sequence("pretokenizers", json::array({older})));
  check(&Case::always, "always of older files");
  WriteSteps(nullptr, Metaspace("first"));
  check(&Case::first, "first");
  WriteSteps(nullptr, nullptr);
  check(&Case::first, "nothing said: as `legacy` in tokenizer_config.json");
  fs::remove(folder_ / "tokenizer.json");
  check(&Case::first, "no file: as `legacy` in tokenizer_config.json");
}

TEST_F(FastTokenizerTest, TellsWhatIsWrongInTokenizerJson) {
  for (const auto& [text, why] : std::vector<std::pair<std::string, std::string>>{
           {"{", "parse error"},
           {"[]", "the file: expected an object, found array"},
           {R"({"normalizer": 3})", "normalizer: expected an object, found number"},
           {R"({"normalizer": {}})", "normalizer.type: expected a text, found null"},
           {R"({"normalizer": {"type": "Sequence"}})", "expected a list, found null"},
           {R"({"normalizer": {"type": "Sequence", "normalizers": [7]}})", "expected an object"},
           {R"({"normalizer": {"type": "Prepend", "prepend": "_"}})", "normalizer prepends \"_\""},
           {R"({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}})", "\"never\""},
           {R"({"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": false}})",
            "\"never\""}}) {
    Write("tokenizer.json", text);
    ExpectRefused("tokenizer.json: ");
    ExpectRefused(why);
  }
  // Whose pictures are no tokens inside a text: the original, which never looks into it.
  Write("tokenizer_config.json", R"({"llava_image_inline": false})");
  EXPECT_NO_THROW(Tokenizer::Load(folder_));
}

TEST_F(TokenizerFilesTest, SpecialPiecesMustBePieces) {
  const Tokenizer tokenizer = FixtureTokenizer(true);
  const std::vector<std::string> there = {"▁the"}, missing = {"▁the", "NO:", "NEITHER:"};
  const Tokenizer special = tokenizer.WithSpecialPieces(there);
  EXPECT_TRUE(special.IsSpecial(tokenizer.IdOf("▁the")));
  EXPECT_NE(special.digest(), tokenizer.digest());
  try {
    tokenizer.WithSpecialPieces(missing);
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("\"NO:\" \"NEITHER:\""));
  }
}

}  // namespace
}  // namespace llava
