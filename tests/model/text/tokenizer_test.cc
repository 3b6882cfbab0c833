#include "model/text/tokenizer.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/text/text_fixtures.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/slowdown.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using Ids = std::vector<int32_t>;

TEST(TokenizerTest, EncodesThePromptsOfTheFixtures) {
  const auto expected = ExpectedJson("tokenization.json");
  const Tokenizer tokenizers[] = {FixtureTokenizer(false), FixtureTokenizer(true)};
  ASSERT_GT(expected["prompts"].size(), 0u);
  for (const auto& row : expected["prompts"]) {
    const std::string text = row["text"];
    SCOPED_TRACE(text);
    for (const bool legacy : {false, true}) {
      const std::string suffix = legacy ? "legacy_true" : "legacy_false";
      EXPECT_EQ(tokenizers[legacy].Encode(text), row[suffix].get<Ids>());
      EXPECT_EQ(tokenizers[legacy].EncodeWithImageMarks(text),
                row["image_marks_" + suffix].get<Ids>());
    }
  }
}

TEST(TokenizerTest, EncodesAsTheFastTokenizerOfLlavaHf) {
  const auto expected = ExpectedJson("tokenization.json");
  const Tokenizer tokenizer = Tokenizer::Load(FixturesDir() / "tiny-llava");
  EXPECT_TRUE(tokenizer.options().image_inline);
  const int32_t image = expected["image_token"];
  EXPECT_EQ(tokenizer.IdOf("<image>"), image);
  EXPECT_EQ(tokenizer.IdOf("<pad>"), expected["pad_token"].get<int32_t>());
  EXPECT_EQ(tokenizer.vocab_size(), expected["pad_token"].get<int32_t>() + 1);
  for (const auto& row : expected["prompts"]) {
    const std::string text = row["text"];
    SCOPED_TRACE(text);
    const Ids hf = row["hf"].get<Ids>();
    EXPECT_EQ(tokenizer.Encode(text), hf);
    Ids marked = tokenizer.EncodeWithImageMarks(text);
    Ids expanded;  // every mark repeated, as the processor does
    const size_t extra = row["hf_expanded"].size() - hf.size();
    const size_t marks = std::count(hf.begin(), hf.end(), image);
    for (int32_t id : marked) {
      expanded.insert(expanded.end(), id == kImageToken ? 1 + extra / marks : 1,
                      id == kImageToken ? image : id);
    }
    EXPECT_EQ(expanded, row["hf_expanded"].get<Ids>());
  }
}

TEST(TokenizerTest, DecodesThePromptsOfTheFixtures) {
  const Tokenizer tokenizer = FixtureTokenizer(false);
  const auto expected = ExpectedJson("tokenization.json");
  for (const auto& row : expected["prompts"]) {
    SCOPED_TRACE(row["text"]);
    const Ids ids = row["decode_input"];
    EXPECT_EQ(tokenizer.Decode(ids, false), row["decoded_hf"].get<std::string>());
    EXPECT_EQ(tokenizer.Decode(ids, true), row["decoded_hf_skip"].get<std::string>());
  }
}

TEST(StreamDecoderTest, GivesTheDeltasOfTheFixtures) {
  const Tokenizer tokenizer = FixtureTokenizer(false);
  const auto expected = ExpectedJson("detokenization.json");
  ASSERT_GT(expected.size(), 0u);
  for (const auto& [name, row] : expected.items()) {
    SCOPED_TRACE(name);
    const Ids ids = row["ids"];
    StreamDecoder decoder(tokenizer);
    size_t i = 0;
    for (; i < row["stream_deltas"].size(); ++i)
      EXPECT_EQ(decoder.Push(ids[i]), row["stream_deltas"][i].get<std::string>());
    if (i < ids.size()) {
      EXPECT_EQ(ids[i], tokenizer.eos_id());
      EXPECT_EQ(decoder.Push(ids[i]), "");
    }
    EXPECT_EQ(decoder.Flush(), row["flush"].get<std::string>());
    EXPECT_EQ(decoder.Flush(), "");
  }
}

TEST(StreamDecoderTest, NeverCutsACharacterAndAddsUpToDecode) {
  std::mt19937 random(2);
  for (const bool legacy : {false, true}) {
    const Tokenizer tokenizer = FixtureTokenizer(legacy);
    for (int round = 0; round < 500; ++round) {
      Ids ids = tokenizer.Encode(OddText(random, true, {"</s>", "🙂"}));
      for (size_t n = random() % 8; n > 0; --n) {  // ids in no sensible order: broken bytes
        ids.insert(ids.begin() + random() % (ids.size() + 1),
                   static_cast<int32_t>(random() % tokenizer.vocab_size()));
      }
      StreamDecoder decoder(tokenizer);
      std::string text;
      auto add = [&text](const std::string& delta) {
        ASSERT_NO_THROW(nlohmann::json(delta).dump());  // which refuses broken UTF-8
        text += delta;
      };
      for (int32_t id : ids) add(decoder.Push(id));
      add(decoder.Flush());
      ASSERT_EQ(text, tokenizer.Decode(ids));
    }
  }
}

TEST(TokenizerTest, KnowsItsSpecialTokens) {
  const Tokenizer tokenizer = FixtureTokenizer(true);
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.unk_id(), 0);
  EXPECT_EQ(tokenizer.IdOf("</s>"), 2);
  EXPECT_EQ(tokenizer.IdOf("<image>"), -1);
  EXPECT_EQ(tokenizer.TokenBytes(2), "</s>");
  EXPECT_TRUE(tokenizer.IsSpecial(0));
  EXPECT_FALSE(tokenizer.IsSpecial(tokenizer.IdOf("<0x0A>")));
  EXPECT_EQ(tokenizer.TokenBytes(tokenizer.IdOf("<0x0A>")), "\n");
  EXPECT_EQ(tokenizer.TokenBytes(tokenizer.IdOf("▁")), " ");
  EXPECT_THROW(tokenizer.TokenBytes(-1), std::out_of_range);
  EXPECT_THROW(tokenizer.TokenBytes(tokenizer.vocab_size()), std::out_of_range);
}

TEST(TokenizerTest, RefusesAddedTokensThatContradictTheModel) {
  const std::string model = ReadBytes(FixturesDir() / "orig-f32" / "tokenizer.model");
  const int32_t size = FixtureTokenizer(true).vocab_size();
  auto refused = [&](std::vector<std::pair<std::string, int32_t>> added, const std::string& why) {
    TokenizerOptions options;
    options.added_tokens = std::move(added);
    try {
      Tokenizer tokenizer(model, options);
      ADD_FAILURE() << why;
    } catch (const std::runtime_error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(why));
    }
  };
  refused({{"<new>", 5}}, "has piece");
  refused({{"", size}}, "empty");
  refused({{"<new>", -1}}, "negative");
  refused({{"<new>", size}, {"<new>", size + 1}}, "another id");
  refused({{"<new>", size}, {"<old>", size}}, "another text");
  refused({{"▁the", size}}, "has this piece");
}

TEST(TokenizerTest, DigestNamesModelAndOptions) {
  const Tokenizer a = FixtureTokenizer(true), b = FixtureTokenizer(true),
                  c = FixtureTokenizer(false);
  EXPECT_EQ(a.digest(), b.digest());
  EXPECT_NE(a.digest(), c.digest());
  TokenizerOptions options, swapped;
  const int32_t n = a.vocab_size();
  options.added_tokens = {{"<x>", n}, {"<y>", n + 1}};
  swapped.added_tokens = {{"<y>", n + 1}, {"<x>", n}};
  EXPECT_NE(Tokenizer(a.model_bytes(), options).digest(), a.digest());
  EXPECT_EQ(Tokenizer(a.model_bytes(), options).digest(),
            Tokenizer(a.model_bytes(), swapped).digest());
}

TEST(TokenizerTest, LongTextsTakeNearlyLinearTime) {
  const Tokenizer tokenizer = FixtureTokenizer(true);
  std::mt19937 random(4);
  std::string mixed;
  while (mixed.size() < 1 << 20) mixed += OddText(random, true);
  for (const std::string& text : {mixed, std::string(1 << 20, ' '), std::string(1 << 20, 'a'),
                                  std::string(1 << 20, '\xFF')}) {
    const auto start = std::chrono::steady_clock::now();
    const Ids ids = tokenizer.Encode(text);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    RecordProperty("seconds", std::to_string(took.count()));
    EXPECT_GT(ids.size(), 1000u);
    EXPECT_LT(took.count(), 10 * kSlowdown) << "1 MB; quadratic time would take minutes";
  }
}

// The tokenizer of the shipped model: nmt_nfkc rules and user-defined role marks.
TEST(TokenizerTest, ReadsTheShippedEmojiTokenizer) {
  const std::filesystem::path folder = std::filesystem::path(SourceDir()) / "deploy/models/emoji/1";
  if (!std::filesystem::exists(folder / "tokenizer.model")) {
    GTEST_SKIP() << "no shipped model at " << folder;
  }
  const Tokenizer tokenizer(ReadBytes(folder / "tokenizer.model"), {});
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  const std::string text = "What is to the left of the lion?";
  EXPECT_EQ(tokenizer.Decode(tokenizer.EncodePieces(text)), text);
  EXPECT_EQ(tokenizer.Decode(tokenizer.EncodePieces("  Ｗｈａｔ   is\tto the left of the lion？ ")),
            text);
  EXPECT_EQ(tokenizer.EncodePieces("USER:").back(), tokenizer.IdOf("USER:"));
}

}  // namespace
}  // namespace llava
