// Schemas and expressions that are written to cost much: they are taken or refused soon, and a step
// under what was taken stays short.

#include <gmock/gmock.h>

#include <ctime>
#include <memory>
#include <string>
#include <string_view>

#include "model/grammar/configurations.h"
#include "model/grammar/grammar.h"
#include "tests/model/grammar/accepts.h"
#include "tests/support/slowdown.h"

namespace llava::grammar {
namespace {

using ::testing::HasSubstr;

// Of this thread on a processor: others may be busy, too.
double Seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Why it is refused, "taken" if it is not; within `seconds`.
template <typename Make>
std::string Outcome(const Make& make, double seconds) {
  const double begin = Seconds();
  std::string outcome = "taken";
  try {
    make();
  } catch (const GrammarError& error) {
    outcome = error.what();
  }
  EXPECT_LT(Seconds() - begin, seconds * kSlowdown);
  return outcome;
}

std::string OfSchema(const std::string& schema) {
  return Outcome([&] { JsonSchema(schema); }, 1);
}

std::string Repeated(const std::string& text, int times, const std::string& between = "") {
  std::string result;
  for (int i = 0; i < times; ++i) result += (i > 0 ? between : "") + text;
  return result;
}

TEST(HostileSchemaTest, ProofsDoNotFollowEveryPath) {
  const std::string pair = R"({"oneOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}],"$defs":{)";
  const std::string alternatives =
      R"({"anyOf":[)" + Repeated(R"({"$ref":"#/$defs/a"})", 20, ",") + "]}";
  EXPECT_THAT(OfSchema(pair + "\"a\":" + alternatives + ",\"b\":" + alternatives + "}}"),
              HasSubstr("use anyOf"));
  const auto object = [](const std::string& other) {
    std::string members, names;
    for (int i = 0; i < 20; ++i) {
      const std::string name = "\"" + std::to_string(i) + "\"";
      members += (i > 0 ? "," : "") + name + R"(:{"$ref":"#/$defs/)" + other + "\"}";
      names += (i > 0 ? "," : "") + name;
    }
    return R"({"type":"object","properties":{)" + members + R"(},"required":[)" + names + "]}";
  };
  EXPECT_THAT(OfSchema(pair + "\"a\":" + object("b") + ",\"b\":" + object("a") + "}}"),
              HasSubstr("use anyOf"));
}

TEST(HostileSchemaTest, ProofsCompareNoMoreThanTheyMay) {
  std::string a, b, pairs;
  for (int i = 0; i < 3500; ++i) {
    a += (i > 0 ? "," : "") + std::to_string(2 * i);
    b += (i > 0 ? "," : "") + std::to_string(2 * i + 1);
  }
  for (int i = 0; i < 300; ++i) {
    pairs += (i > 0 ? R"(,{"title":")" : R"({"title":")") + std::to_string(i) +
             R"(","oneOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}]})";
  }
  const std::string values = R"("$defs":{"a":{"enum":[)" + a + R"(]},"b":{"enum":[)" + b + "]}}}";
  EXPECT_THAT(OfSchema(R"({"anyOf":[)" + pairs + "]," + values),
              HasSubstr("too many alternatives; use anyOf"));
  EXPECT_EQ(OfSchema(R"({"oneOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}],)" + values), "taken");
}

TEST(HostileSchemaTest, ProofsTakeEqualValuesAsEqual) {
  for (const char* values :
       {R"([{"const":{"a":1,"b":2}},{"const":{"b":2,"a":1}}])", R"([{"const":1},{"const":1.0}])",
        R"([{"enum":[[1]]},{"enum":[[1.0]]}])", R"([{"const":-0.0},{"const":0}])"}) {
    EXPECT_THAT(OfSchema(std::string(R"({"oneOf":)") + values + "}"), HasSubstr("may both fit"));
  }
  EXPECT_EQ(OfSchema(R"({"oneOf":[{"const":[1,2]},{"const":[12]},{"const":["1",2]}]})"), "taken");
}

TEST(HostileSchemaTest, ManyReferencesToALargeSchema) {
  std::string members, names;
  for (int i = 0; i < 900; ++i) {
    names += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\"";
    members += (i > 0 ? ",\"" : "\"") + std::to_string(i) + R"(":{"title":")" + std::to_string(i) +
               R"(","$ref":"#"})";
  }
  const std::string text = R"({"type":"object","description":")" + std::string(20000, 'x') +
                           R"(","properties":{)" + members + R"(},"required":[)" + names + "]}";
  // Each would hold all of it again.
  EXPECT_THAT(Outcome([&] { JsonSchema(text); }, 0.1), HasSubstr("nothing can fit"));
}

TEST(HostileRegexTest, LargeClassesAreRepeatedCheaply) {
  std::string ranges;
  for (uint32_t c = 0x400; ranges.size() < 58000; c += 2) {
    if (c < 0x800) {
      ranges += {static_cast<char>(0xC0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))};
    } else if (c < 0xD800) {
      ranges += {static_cast<char>(0xE0 | (c >> 12)), static_cast<char>(0x80 | ((c >> 6) & 63)),
                 static_cast<char>(0x80 | (c & 63))};
    } else {
      ranges += "\xF0\x90\x80\x80";
    }
  }
  Outcome([&] { Regex("(?:[" + ranges + "]{10000}){8}"); }, 1);
}

TEST(HostileRegexTest, LongChainsWithoutACharacterLeadToNoDeadEnd) {
  EXPECT_TRUE(Accepts(Regex("x(?:){3000}a"), "xa"));
  const auto refusal = [](const std::string& pattern) {
    return Outcome([&] { Regex(pattern); }, 0.5);
  };
  EXPECT_THAT(refusal("x(?:){5000}a"), HasSubstr("without a character"));
  EXPECT_THAT(refusal("(?:x(?:){4050}){20}(?:(?:|){10}){300}a"), HasSubstr("without a character"));
  EXPECT_THAT(OfSchema(R"({"type":"string","pattern":"x(?:){5000}a"})"),
              HasSubstr("without a character"));
}

TEST(HostileSchemaTest, EqualAlternativesWithinEachOtherAreOne) {
  std::string schema = R"({"type":"integer"})";
  for (int i = 0; i < 10; ++i) schema = R"({"anyOf":[)" + schema + "," + schema + "]}";
  EXPECT_TRUE(Accepts(JsonSchema(schema), "12"));
}

}  // namespace
}  // namespace llava::grammar
