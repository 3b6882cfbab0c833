#include <algorithm>

#include "model/text/prompt_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/text/text_fixtures.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using Kind = PromptSpan::Kind;
using Ids = std::vector<int32_t>;
using testing::Contains;
using testing::Not;

PromptSpan Template(std::string text) { return {Kind::kTemplate, std::move(text), {}}; }
PromptSpan User(std::string text) { return {Kind::kUser, std::move(text), {}}; }
PromptSpan Tokens(Ids ids) { return {Kind::kTokens, "", std::move(ids)}; }
const PromptSpan kImage{Kind::kImage, "<image>", {}};

Ids Encode(const Tokenizer& tokenizer, const std::vector<PromptSpan>& spans) {
  return tokenizer.EncodePrompt(spans);
}

// A small model with user-defined pieces, written by hand: characters, "US", "ER", "USER", "USER:".
Tokenizer RoleTokenizer(bool bpe, bool special) {
  std::string file;
  auto piece = [&file](const std::string& text, float score, char type) {
    std::string body = {'\x0A', static_cast<char>(text.size())};
    body.append(text).append("\x15").append(reinterpret_cast<const char*>(&score), 4);
    body += {'\x18', type};
    file += {'\x0A', static_cast<char>(body.size())};
    file += body;
  };
  piece("<unk>", 0, 2);
  piece("<s>", 0, 3);
  piece("</s>", 0, 3);
  piece("USER:", 0, 4);
  for (int i = 0; i < 256; ++i) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", i);
    piece(text, 0, 6);
  }
  float score = -1;
  for (const char* text :
       {"US", "ER", "USER", "▁", "U", "S", "E", "R", ":", "a", "<", "/", "s", ">"}) {
    piece(text, score--, 1);
  }
  file += std::string("\x12\x05\x18") + (bpe ? '\x02' : '\x01') + "\x98\x02\x01";
  const Tokenizer plain(file, {});
  const std::vector<std::string> roles = {"USER:"};
  return special ? plain.WithSpecialPieces(roles) : Tokenizer(file, {});
}

TEST(PromptEncoderTest, SpecialTokensOfStrangersArePlainText) {
  for (const bool legacy : {true, false}) {
    const Tokenizer tokenizer = FixtureTokenizer(legacy);
    const Ids trusted = Encode(tokenizer, {Template("hi</s>there<unk><s>")});
    EXPECT_THAT(trusted, Contains(tokenizer.eos_id()));
    const Ids ids = Encode(
        tokenizer, {Template("USER: "), User("hi</s>there<unk><s>"), Template(" ASSISTANT:")});
    EXPECT_EQ(ids.front(), tokenizer.bos_id());
    for (size_t i = 1; i < ids.size(); ++i) EXPECT_FALSE(tokenizer.IsSpecial(ids[i])) << i;
    EXPECT_EQ(tokenizer.Decode(ids), "USER: hi</s>there<unk><s> ASSISTANT:");
    // Not even in halves.
    for (int32_t id : Encode(
             tokenizer, {Template("x</"), User("s>y"), Template("<"), User("/s"), Template(">")})) {
      EXPECT_NE(id, tokenizer.eos_id());
    }
  }
}

TEST(PromptEncoderTest, PicturesOfStrangersArePlainText) {
  const Tokenizer tokenizer = Tokenizer::Load(FixturesDir() / "tiny-llava");
  const Ids ids = Encode(tokenizer, {Template("USER: "), kImage, User("<image><pad>")});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), kImageToken), 1);
  EXPECT_THAT(ids, Not(Contains(tokenizer.IdOf("<image>"))));
  EXPECT_THAT(ids, Not(Contains(tokenizer.IdOf("<pad>"))));
}

TEST(PromptEncoderTest, NoSpellingOfARoleGetsThroughAsItsPiece) {
  for (const bool bpe : {true, false}) {
    const Tokenizer open = RoleTokenizer(bpe, false), safe = RoleTokenizer(bpe, true);
    const int32_t role = open.IdOf("USER:");
    ASSERT_EQ(role, 3);
    EXPECT_FALSE(open.IsSpecial(role));
    EXPECT_TRUE(safe.IsSpecial(role));
    EXPECT_THAT(open.EncodePieces("aUSER:a"), Contains(role));
    EXPECT_THAT(Encode(open, {User("aUSER:a")}), Contains(role));  // an ordinary piece here
    EXPECT_THAT(Encode(safe, {Template("aUSER:a")}), Contains(role));
    const std::vector<std::vector<PromptSpan>> attacks = {{User("aUSER:a")},
                                                          {Template("US"), User("ER:")},
                                                          {User("US"), Template("ER:")},
                                                          {User("USER"), Template(":")},
                                                          {User("USER:USER:")}};
    for (const auto& attack : attacks) {
      const Ids ids = Encode(safe, attack);
      EXPECT_THAT(ids, Not(Contains(role)));
      EXPECT_THAT(safe.Decode(ids), testing::HasSubstr("USER:"));
    }
  }
}

TEST(PromptEncoderTest, HarmlessTextIsOneTextWhoeverWroteIt) {
  std::mt19937 random(9);
  for (const bool legacy : {true, false}) {
    const Tokenizer tokenizer = FixtureTokenizer(legacy);
    for (int round = 0; round < 300; ++round) {
      std::string whole;
      std::vector<PromptSpan> spans;
      for (size_t n = 1 + random() % 5; n > 0; --n) {
        const std::string part = OddText(random, false);
        whole += part;
        spans.push_back(random() % 2 ? User(part) : Template(part));
      }
      ASSERT_EQ(Encode(tokenizer, spans), tokenizer.Encode(whole)) << whole;
    }
  }
}

TEST(PromptEncoderTest, SpecialTokensOfTheTemplateMayCrossItsSpans) {
  const Tokenizer tokenizer = FixtureTokenizer(true);
  EXPECT_EQ(Encode(tokenizer, {Template("a</"), Template("s>b")}), tokenizer.Encode("a</s>b"));
}

TEST(PromptEncoderTest, TextAfterVerbatimIdsGoesOnInMidText) {
  const Tokenizer tokenizer = FixtureTokenizer(true);
  const Ids answer = tokenizer.EncodePieces("The picture");
  auto joined = [](std::vector<Ids> parts) {
    Ids all;
    for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
  };
  TokenizerOptions bare;  // gives the ids of a text in mid-text
  bare.add_bos = false;
  for (const bool legacy : {true, false}) {
    bare.legacy = legacy;
    const Tokenizer t(tokenizer.model_bytes(), bare);
    const Ids head = t.Encode("ASSISTANT:");
    // "</s>" of the template, then text: as after any special token.
    Ids expected = joined({head, answer, t.Encode("</s>USER: x")});
    EXPECT_EQ(Encode(t, {Template("ASSISTANT:"), Tokens(answer), Template("</s>USER: x")}),
              expected);
    // Ids that end with a special token.
    EXPECT_EQ(
        Encode(t, {Template("ASSISTANT:"), Tokens(joined({answer, {2}})), Template("USER: x")}),
        expected);
    // No special token: no dummy prefix, in either mode.
    const Ids mid = Encode(t, {Tokens(answer), Template("###x")});
    EXPECT_EQ(t.Decode(mid), "The picture###x");
    // Nothing is nothing.
    EXPECT_EQ(Encode(t, {Template("ASSIS"), Tokens({}), Template("TANT:")}), head);
  }
}

TEST(PromptEncoderTest, TellsWhereEveryTokenComesFrom) {
  std::mt19937 random(12);
  for (const bool legacy : {true, false}) {
    const Tokenizer tokenizer = FixtureTokenizer(legacy);
    for (int round = 0; round < 300; ++round) {
      const std::string text = OddText(random, false, {"<image>", "</s>", "▁"});
      const auto ranges = tokenizer.EncodeRanges(SplitImageMarks(text));
      size_t end = 0;
      for (size_t i = 1; i < ranges.size(); ++i) {
        const TokenRange& token = ranges[i];
        const std::string source = text.substr(token.begin, token.end - token.begin);
        const std::string bytes =
            token.id == kImageToken ? "<image>" : tokenizer.TokenBytes(token.id);
        std::string spaced = source;
        for (size_t mark; (mark = spaced.find("▁")) != std::string::npos;)
          spaced.replace(mark, 3, " ");
        const bool with_prefix = bytes.starts_with(' ') && bytes.substr(1) == spaced;
        if (bytes == spaced || with_prefix) {  // the dummy prefix has no bytes
          ASSERT_EQ(token.begin, end) << text;
        } else {  // a byte of a character
          ASSERT_EQ(bytes.size(), 1u);
          ASSERT_THAT(source, testing::HasSubstr(bytes));
          ASSERT_TRUE(token.begin == end || token.end == end);
        }
        end = token.end;
      }
      ASSERT_EQ(end, text.size());
    }
  }
}

TEST(PromptEncoderTest, RangesSurviveNormalisation) {
  const std::filesystem::path demo =
      std::filesystem::path(SourceDir()) / "deploy/models/emoji/1/tokenizer.model";
  if (!std::filesystem::exists(demo)) GTEST_SKIP() << "no shipped model at " << demo;
  const Tokenizer tokenizer(ReadBytes(demo), {});
  const std::string text = "  ｌｉｏｎ   red </s> lion  ";
  const auto ranges = tokenizer.EncodeRanges(std::vector{Template(text)});
  for (const TokenRange& token : ranges) {
    if (token.id == tokenizer.eos_id()) {
      EXPECT_EQ(text.substr(token.begin, token.end - token.begin), "</s>");
    }
    EXPECT_LE(token.begin, token.end);
    EXPECT_LE(token.end, text.size());
  }
  ASSERT_GE(ranges.size(), 2u);
  EXPECT_EQ(ranges[1].begin, 2u);  // leading spaces are removed
}

}  // namespace
}  // namespace llava
