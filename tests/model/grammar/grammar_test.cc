// The parts: automata, characters, numbers between bounds, choices.

#include "model/grammar/grammar.h"

#include <gmock/gmock.h>

#include "model/grammar/code_points.h"
#include "model/grammar/configurations.h"
#include "model/grammar/json_rules.h"
#include "model/grammar/number_range.h"
#include "model/text/utf8.h"
#include "tests/model/grammar/accepts.h"

namespace llava::grammar {
namespace {

using ::testing::HasSubstr;

TEST(CodePointsTest, AllOfUnicodeAndNothingElse) {
  AutomatonBuilder builder;
  const int32_t rule = builder.AddRule(), end = builder.AddState();
  builder.SetFinal(end);
  const CodePoints odd = {{'b', 'y'},          {0x7F, 0x81},      {0x7FF, 0x801},
                          {0xD000, 0xE123},    {0xFFFF, 0x10001}, {0x3FFFF, 0x90000},
                          {0x10FFFE, 0x10FFFF}};
  AddCodePoints(builder, builder.start(rule), odd, end);
  const auto automaton = builder.Build(rule);
  const auto is_in = [](char32_t c, const CodePoints& set) {
    for (const auto& [low, high] : set) {
      if (c >= low && c <= high) return true;
    }
    return false;
  };
  Configurations sets(automaton);
  const CodePoints others = Complement(odd);
  for (char32_t c = 0; c <= 0x1FFFFF; ++c) {
    // Also what is no character: its bytes must be refused.
    std::string bytes;
    if (c < 0x80) {
      bytes = {static_cast<char>(c)};
    } else if (c < 0x800) {
      bytes = {static_cast<char>(0xC0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))};
    } else if (c < 0x10000) {
      bytes = {static_cast<char>(0xE0 | (c >> 12)), static_cast<char>(0x80 | ((c >> 6) & 63)),
               static_cast<char>(0x80 | (c & 63))};
    } else {
      bytes = {static_cast<char>(0xF0 | (c >> 18)), static_cast<char>(0x80 | ((c >> 12) & 63)),
               static_cast<char>(0x80 | ((c >> 6) & 63)), static_cast<char>(0x80 | (c & 63))};
    }
    int32_t set = sets.initial();
    for (const char byte : bytes) set = sets.Step(set, static_cast<uint8_t>(byte));
    const bool whole = ReadUtf8(bytes).state == Utf8Char::State::kWhole;
    ASSERT_EQ(sets.complete(set), whole && is_in(c, odd)) << static_cast<uint32_t>(c);
    ASSERT_TRUE(!whole || is_in(c, odd) != is_in(c, others)) << static_cast<uint32_t>(c);
  }
}

TEST(JsonStringTest, CountsCodePointsHoweverTheyAreWritten) {
  AutomatonBuilder builder;
  const auto two = builder.Build(JsonRules(builder).String(2, 2));
  for (const char* text : {R"("ab")", R"("é中")", R"("\"\\")", R"("\u00e9\/")",
                           R"("\ud83d\ude00x")", R"("😀😀")", R"("\uD7FF\uE000")", "\"\x7f \""}) {
    EXPECT_TRUE(Accepts(two, text)) << text;
  }
  for (const char* text :
       {R"("a")", R"("abc")", R"("\x4")", R"("\ud83dx")", R"("\ude00x")", R"("\ud83d\u0041x")",
        "\"\n\n\"", "\"\xC3\xC3\"", "\"\xED\xA0\x80\xED\xA0\x80\"", "ab", R"("ab)"}) {
    EXPECT_FALSE(Accepts(two, text)) << text;
  }
}

TEST(JsonNumberTest, IsThatOfTheStandardWithBoundedDigits) {
  AutomatonBuilder builder;
  const auto number = builder.Build(JsonRules(builder).Number());
  for (const char* text :
       {"0", "-0", "7", "10", "-12.50", "0.1e5", "1E+10", "1e-99", "123456789012345678"}) {
    EXPECT_TRUE(Accepts(number, text)) << text;
  }
  for (const char* text : {"", "-", "01", "+1", "1.", ".5", "1e", "1e100", "1234567890123456789",
                           "0x1", "--1", "1.2.3", "NaN"}) {
    EXPECT_FALSE(Accepts(number, text)) << text;
  }
}

TEST(NumberRangeTest, EveryNumberNearTheBounds) {
  struct Case {
    const char *low, *high;
    bool low_exclusive, high_exclusive;
  };
  for (const Case& c :
       {Case{"0", "1", false, false}, Case{"-1", "1", true, false}, Case{"0", nullptr, true, false},
        Case{nullptr, "0", false, true}, Case{"-12.5", "-3.25", false, true},
        Case{"9.9", "10.1", true, true}, Case{"95", "1005", false, false},
        Case{nullptr, nullptr, false, false}, Case{"0.05", "0.2", false, false},
        Case{"-100", "100", false, true}, Case{"2.5e1", "3e1", false, false},
        Case{"7", "7", false, false}, Case{"-0.0", "0", false, false}}) {
    for (const bool integer : {false, true}) {
      AutomatonBuilder builder;
      std::optional<Bound> low, high;
      if (c.low != nullptr) low = {ParseDecimal(c.low), c.low_exclusive};
      if (c.high != nullptr) high = {ParseDecimal(c.high), c.high_exclusive};
      const int32_t root = builder.AddRule(), end = builder.AddState();
      builder.SetFinal(end);
      builder.AddCall(builder.start(root), NumberBetween(builder, low, high, integer), end);
      builder.AddText(builder.start(root), "none", end);  // so that there always is something
      const auto automaton = builder.Build(root);
      for (int hundredths = -120'000; hundredths <= 120'000; ++hundredths) {
        if (std::abs(hundredths) > 2000 && hundredths % 100 != 0 && hundredths % 37 != 0) continue;
        const double value = hundredths / 100.0;
        const auto inside = [&](double x) {
          if (c.low != nullptr && (c.low_exclusive ? x <= std::atof(c.low) : x < std::atof(c.low)))
            return false;
          return c.high == nullptr ||
                 (c.high_exclusive ? x < std::atof(c.high) : x <= std::atof(c.high));
        };
        const std::string sign = hundredths < 0 ? "-" : "";
        const int size = std::abs(hundredths);
        const std::string whole = sign + std::to_string(size / 100);
        const std::string fraction =
            std::string(size % 100 < 10 ? "0" : "") + std::to_string(size % 100);
        ASSERT_EQ(Accepts(automaton, whole + "." + fraction), !integer && inside(value))
            << whole << "." << fraction << " of " << (c.low ? c.low : "-") << " to "
            << (c.high ? c.high : "-");
        if (hundredths % 100 == 0) {
          ASSERT_EQ(Accepts(automaton, whole), inside(value))
              << whole << " of " << (c.low ? c.low : "-") << " to " << (c.high ? c.high : "-");
        }
      }
      EXPECT_FALSE(Accepts(automaton, "00"));
      EXPECT_FALSE(Accepts(automaton, "-"));
      EXPECT_FALSE(Accepts(automaton, "1."));
    }
  }
}

TEST(NumberRangeTest, ReadsDecimals) {
  const auto parts = [](const char* text) {
    const Decimal d = ParseDecimal(text);
    return (d.negative ? "-" : "") + d.whole + "." + d.fraction;
  };
  EXPECT_EQ(parts("0"), "0.");
  EXPECT_EQ(parts("-0.0"), "0.");
  EXPECT_EQ(parts("12.50"), "12.5");
  EXPECT_EQ(parts("1.25e2"), "125.");
  EXPECT_EQ(parts("-1.5e-3"), "-0.0015");
  EXPECT_EQ(parts("1e+17"), "100000000000000000.");
  EXPECT_THROW(ParseDecimal("1e18"), GrammarError);
  EXPECT_THROW(ParseDecimal("1e-18"), GrammarError);
  EXPECT_THROW(ParseDecimal("1e999999999999"), GrammarError);
}

TEST(ChoicesTest, OneOfThem) {
  const auto automaton = Choices(std::vector<std::string>{"cat", "car", "catalogue", "dog"});
  for (const char* text : {"cat", "car", "catalogue", "dog"}) EXPECT_TRUE(Accepts(automaton, text));
  for (const char* text : {"", "ca", "cats", "do", "dogs"}) EXPECT_FALSE(Accepts(automaton, text));
  EXPECT_THROW(Choices(std::vector<std::string>{}), GrammarError);
  EXPECT_THROW(Choices(std::vector<std::string>{"a", ""}), GrammarError);
  EXPECT_THROW(Choices(std::vector<std::string>{" a"}), GrammarError);
}

TEST(AutomatonTest, RefusesWhatCannotBe) {
  AutomatonBuilder circle;
  const int32_t rule = circle.AddRule(), end = circle.AddState();
  circle.SetFinal(end);
  circle.AddCall(circle.start(rule), rule, end);
  EXPECT_THROW(circle.Build(rule), GrammarError);

  AutomatonBuilder endless;
  const int32_t loop = endless.AddRule();
  endless.AddByte(endless.start(loop), 'a', endless.start(loop));
  EXPECT_THROW(endless.Build(loop), GrammarError);

  AutomatonBuilder wide;
  const int32_t root = wide.AddRule(), last = wide.AddState();
  wide.SetFinal(last);
  for (size_t i = 0; i <= kMostPlaces; ++i) {
    const int32_t state = wide.AddState();
    wide.AddEmpty(wide.start(root), state);
    wide.AddByte(state, 'a', last);
  }
  EXPECT_THROW(wide.Build(root), GrammarError);
}

}  // namespace
}  // namespace llava::grammar
