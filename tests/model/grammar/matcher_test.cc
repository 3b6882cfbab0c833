// Walks under random schemas: what comes out is valid, what is valid may come out, and masks say
// exactly what may come next.

#include "model/grammar/matcher.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "model/grammar/grammar.h"
#include "tests/model/grammar/random_schema.h"
#include "tests/model/grammar/schema_validator.h"

namespace llava {
namespace {

using grammar::Constraint;
using grammar::Matcher;
using Json = nlohmann::ordered_json;

std::shared_ptr<Constraint> ConstraintOf(std::shared_ptr<const grammar::Automaton> automaton,
                                         bool drops_first_space = false) {
  return std::make_shared<Constraint>(std::move(automaton), JsonVocabulary(drops_first_space));
}

// Byte by byte: ids 3 to 258.
bool Accepts(const std::shared_ptr<Constraint>& constraint, const std::string& text) {
  Matcher matcher(constraint);
  for (const char byte : text) {
    if (!matcher.Advance(3 + static_cast<uint8_t>(byte))) return false;
  }
  return matcher.complete();
}

TEST(MatcherTest, RandomWalksGiveValidDocuments) {
  RandomSource random(1);
  int ended = 0;
  for (int i = 0; i < 400; ++i) {
    const Json schema = RandomSchema(random, 3);
    const auto constraint = ConstraintOf(grammar::JsonSchema(schema.dump()));
    for (int walk = 0; walk < 5; ++walk) {
      Matcher matcher(constraint);
      const std::string text = RandomWalk(random, matcher, *JsonVocabulary(), 60);
      if (!matcher.complete()) {
        ASSERT_EQ(text.find('<'), text.npos) << schema << "\n" << text;
        continue;  // it rambles on
      }
      ++ended;
      const Json document = Json::parse(text, nullptr, /*allow_exceptions=*/false);
      ASSERT_FALSE(document.is_discarded()) << schema << "\n" << text;
      ASSERT_TRUE(IsValid(document, schema, schema)) << schema << "\n" << text;
    }
  }
  EXPECT_GT(ended, 1900);
}

TEST(MatcherTest, ValidDocumentsAreAccepted) {
  RandomSource random(2);
  for (int i = 0; i < 1500; ++i) {
    const Json schema = RandomSchema(random, 3);
    const auto constraint = ConstraintOf(grammar::JsonSchema(schema.dump()));
    for (int j = 0; j < 3; ++j) {
      const Json document = RandomDocument(random, schema);
      if (!IsValid(document, schema, schema)) continue;  // bounds that meet nowhere
      for (const int indent : {-1, 1, 2}) {
        ASSERT_TRUE(Accepts(constraint, document.dump(indent))) << schema << "\n" << document;
      }
    }
  }
}

TEST(MatcherTest, MasksSayWhatAdvanceDoes) {
  RandomSource random(3);
  const auto& vocabulary = *JsonVocabulary();
  for (int i = 0; i < 150; ++i) {
    const Json schema = RandomSchema(random, 3);
    const auto constraint = ConstraintOf(grammar::JsonSchema(schema.dump()), i % 2 == 0);
    Matcher matcher(constraint);
    for (int step = 0; step < 40 && !matcher.finished(); ++step) {
      const std::vector<int32_t> allowed = AllowedTokens(matcher, vocabulary);
      std::vector<int32_t> taken;
      for (int32_t id = 0; id < vocabulary.size(); ++id) {
        if (Matcher(matcher).Advance(id)) taken.push_back(id);
      }
      ASSERT_EQ(allowed, taken) << schema << " step " << step;
      ASSERT_FALSE(allowed.empty());
      ASSERT_TRUE(matcher.Advance(allowed[random() % allowed.size()]));
    }
  }
}

TEST(MatcherTest, FreeObjectsAreParsedAndNoDeeperThanAllowed) {
  RandomSource random(4);
  const auto constraint = ConstraintOf(grammar::JsonObject());
  for (int i = 0; i < 100; ++i) {
    Matcher matcher(constraint);
    const std::string text = RandomWalk(random, matcher, *JsonVocabulary(), 100);
    if (!matcher.complete()) continue;
    const Json document = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    ASSERT_TRUE(document.is_object()) << text;
  }
  const auto nested = [](int levels) {
    std::string text = "{\"a\":";
    for (int i = 1; i < levels; ++i) text += '[';
    for (int i = 1; i < levels; ++i) text += ']';
    return text + '}';
  };
  EXPECT_TRUE(Accepts(constraint, nested(grammar::kMostNesting)));
  EXPECT_FALSE(Accepts(constraint, nested(grammar::kMostNesting + 1)));
}

// Whoever always opens what can be opened still comes to an end.
TEST(MatcherTest, NestingEndsWhereTheLimitIs) {
  const auto constraint = ConstraintOf(grammar::JsonSchema(
      R"({"$ref":"#/$defs/a","$defs":{"a":{"type":"object","required":["b"],"properties":
          {"b":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/a"},"minItems":1},{"const":1}]}}}}})"));
  Matcher matcher(constraint);
  const auto& vocabulary = *JsonVocabulary();
  std::string text;
  while (!matcher.finished()) {
    const std::vector<int32_t> allowed = AllowedTokens(matcher, vocabulary);
    ASSERT_FALSE(allowed.empty());
    int32_t best = allowed.front();
    for (const int32_t id : allowed) {
      const std::string& bytes = vocabulary.bytes(id);
      for (const char* wanted : {"[{\"", "{\"", "[", "{", "b", "\":", "\"", "}", "]"}) {
        if (bytes == wanted) best = id;
      }
      if (bytes == "[{\"" || bytes == "[") {
        best = id;
        break;
      }
    }
    text += vocabulary.bytes(best);
    ASSERT_TRUE(matcher.Advance(best));
    ASSERT_LT(text.size(), 5000u);
  }
  EXPECT_TRUE(Json::accept(text)) << text;
}

TEST(MatcherTest, TheFirstTokenMayBringASpaceThatIsDropped) {
  const auto dropping = ConstraintOf(grammar::JsonObject(), true);
  const auto keeping = ConstraintOf(grammar::JsonObject(), false);
  const auto& vocabulary = *JsonVocabulary();
  const auto allows = [&](Matcher matcher, const std::string& text) {
    for (const int32_t id : AllowedTokens(matcher, vocabulary)) {
      if (vocabulary.bytes(id) == text) return true;
    }
    return false;
  };
  EXPECT_TRUE(allows(Matcher(dropping), " {"));
  EXPECT_TRUE(allows(Matcher(dropping), " "));
  EXPECT_TRUE(allows(Matcher(dropping), "{\""));
  EXPECT_FALSE(allows(Matcher(dropping), "  "));
  EXPECT_FALSE(allows(Matcher(keeping), " {"));
  EXPECT_FALSE(allows(Matcher(keeping), " "));
  EXPECT_FALSE(Matcher(dropping).Advance(3 + ' ')) << "the byte stays";
  Matcher matcher(dropping);
  EXPECT_TRUE(matcher.Advance(vocabulary.size() - 1));
  EXPECT_FALSE(allows(matcher, " "));
  EXPECT_TRUE(matcher.Advance(3 + '{'));
}

TEST(MatcherTest, WhatIsRememberedIsBoundedAndForgottenWithoutATrace) {
  // Sets without end: a position in each of many strings.
  const auto constraint = ConstraintOf(grammar::JsonSchema(
      R"({"type":"array","items":{"type":"string","minLength":5000,"maxLength":5000},"maxItems":500})"));
  const auto& vocabulary = *JsonVocabulary();
  Matcher matcher(constraint);
  std::string text;
  const auto add = [&](const std::string& bytes) {
    for (const char byte : bytes) ASSERT_TRUE(matcher.Advance(3 + static_cast<uint8_t>(byte)));
    text += bytes;
  };
  add("[");
  for (int i = 0; i < 500 && constraint->usage().times_begun_anew < 2; ++i) {
    add("\"" + std::string(5000, 'x') + "\",");
    ASSERT_LT(constraint->usage().bytes, 26u << 20);
  }
  ASSERT_EQ(constraint->usage().times_begun_anew, 2u);
  add("\"xyz");
  const auto fresh = ConstraintOf(grammar::JsonSchema(
      R"({"type":"array","items":{"type":"string","minLength":5000,"maxLength":5000},"maxItems":500})"));
  Matcher again(fresh);
  for (const char byte : text) ASSERT_TRUE(again.Advance(3 + static_cast<uint8_t>(byte)));
  EXPECT_EQ(AllowedTokens(matcher, vocabulary), AllowedTokens(again, vocabulary));
}

// A place may have more calls around it than are remembered otherwise.
TEST(MatcherTest, WhatIsNeededIsNotForgottenAtEachStep) {
  std::string schema = R"({"$ref":"#/$defs/x/0","$defs":{"x":[)";
  constexpr int kReferences = 2500, kLevels = 62;
  for (int i = 1; i <= kReferences; ++i) {
    schema += R"({"$ref":"#/$defs/x/)" + std::to_string(i) + "\"},";
  }
  schema += R"({"type":"array","items":{"$ref":"#/$defs/x/0"}}]}})";
  const auto constraint = ConstraintOf(grammar::JsonSchema(schema));
  Matcher matcher(constraint);
  for (int i = 0; i < kLevels; ++i) ASSERT_TRUE(matcher.Advance(3 + '['));
  EXPECT_GT(constraint->usage().bytes, 12u << 20);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(matcher.Advance(3 + ' '));
  for (int i = 0; i < kLevels; ++i) ASSERT_TRUE(matcher.Advance(3 + ']'));
  EXPECT_TRUE(matcher.complete());
  EXPECT_LE(constraint->usage().times_begun_anew, 2u);
}

// An expression whose sets have many bytes to read, and that are new for each text.
TEST(MatcherTest, AStepLooksAtAFewStatesAndEdgesHoweverManyThereAre) {
  std::string any = "[ -~]";
  for (int i = 1; i < 180; ++i) any += "|[ -~]";
  // Tokens that part at each of their bytes.
  std::vector<std::string> tokens(3);
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (int i = 0; i < 1 << 13; ++i) {
    std::string token;
    for (int bit = 0; bit < 13; ++bit) token += ((i >> bit) & 1) != 0 ? 'a' : 'z';
    tokens.push_back(std::move(token));
  }
  const grammar::Vocabulary vocabulary(std::move(tokens));
  const auto constraint =
      std::make_shared<Constraint>(grammar::Regex("[ -~]*[a-m](?:" + any + "){20}"),
                                   std::make_shared<const grammar::Vocabulary>(vocabulary));
  RandomSource random(6);
  Matcher matcher(constraint);
  uint64_t before = constraint->usage().looked_at, most = 0;
  for (int i = 0; i < 30; ++i) {
    ASSERT_FALSE(AllowedTokens(matcher, vocabulary).empty());
    const uint64_t now = constraint->usage().looked_at;
    most = std::max(most, now - std::exchange(before, now));
    ASSERT_TRUE(matcher.Advance(static_cast<int32_t>(3 + 'a' + random() % 26)));
  }
  EXPECT_LT(most, 500'000u);
}

TEST(MatcherTest, TokensThatAreNoneAreRefused) {
  const auto constraint = ConstraintOf(grammar::JsonObject());
  for (const int32_t token : {-1, 0, 2, JsonVocabulary()->size()}) {
    EXPECT_FALSE(Matcher(constraint).Advance(token)) << token;
  }
}

TEST(VocabularyTest, TellsWhichByteIsMissing) {
  EXPECT_EQ(JsonVocabulary()->missing_byte(), std::nullopt);
  EXPECT_EQ(grammar::Vocabulary({"a", "b"}).missing_byte(), 0);
}

}  // namespace
}  // namespace llava
