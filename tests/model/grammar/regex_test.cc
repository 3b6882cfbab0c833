// Regular expressions, as they are and within JSON strings, beside those of the standard library.

#include "model/grammar/regex.h"

#include <gmock/gmock.h>

#include <random>
#include <regex>
#include <string>
#include <vector>

#include "model/grammar/configurations.h"
#include "model/grammar/grammar.h"
#include "tests/model/grammar/accepts.h"

namespace llava::grammar {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const Automaton> Searching(const std::string& pattern) {
  AutomatonBuilder builder;
  const int32_t rule = builder.AddRule(), end = builder.AddState();
  builder.SetFinal(end);
  Regexes(builder, Regexes::Spelling::kPlain).Add(pattern, true, builder.start(rule), end);
  return builder.Build(rule);
}

TEST(RegexTest, AgreesWithTheStandardLibrary) {
  std::mt19937 random(1);
  const std::string letters = "ab1_-. \n";
  for (const std::string pattern :
       {"a",          "^a",      "a$",           "^a$",           "^(a|b)*$",
        "^a{2,3}b?$", "a+?b",    "^[ab]{3}$",    "^[^ab]+$",      R"(^\w+\.\w+$)",
        R"(\d\d)",    R"(\s)",   R"(^\S\D$)",    "^a|b$",         "^(?:a|b1)(?:-|_){2}$",
        "^.{3}$",     "^(a*)*$", "^((a|b)+1)+$", R"(^[\w\-.]+$)", "^a{2}$",
        "^a{1,}$",    "",        "^$",           "^[a-b1]*_$",    "^()a$",
        "^(a|)b$",    "^a{0}b$", R"(^[\b]?a$)",  R"(\x61\x62)",   R"(^[a\]]$)",
        "(a|b){0,2}1"}) {
    const std::regex reference(pattern);
    const auto automaton = Searching(pattern);
    for (int i = 0; i < 3000; ++i) {
      std::string text;
      for (size_t size = random() % 6; text.size() < size;)
        text += letters[random() % letters.size()];
      // ^ and $ of the library are those of lines.
      if (text.find('\n') != text.npos && pattern.find_first_of("^$") != pattern.npos) continue;
      ASSERT_EQ(Accepts(automaton, text), std::regex_search(text, reference)) << pattern << "\n"
                                                                              << text;
    }
  }
}

TEST(RegexTest, Characters) {
  const auto greek = Regex(R"([α-ω]+|\u{1F600}|\ud83d\ude01|[^\x00-\x7f]{2}x)");
  for (const char* text : {"αβγ", "😀", "😁", "é中x"}) EXPECT_TRUE(Accepts(greek, text)) << text;
  for (const char* text : {"", "a", "Ω", "😂", "éx", "aax"})
    EXPECT_FALSE(Accepts(greek, text)) << text;
  EXPECT_TRUE(Accepts(Regex(R"(\/\.\*\{\})"), "/.*{}"));
}

TEST(RegexTest, TextsDoNotBeginWithASpace) {
  const auto words = Regex(R"([ a-z]*)");
  EXPECT_TRUE(Accepts(words, ""));
  EXPECT_TRUE(Accepts(words, "a b "));
  EXPECT_FALSE(Accepts(words, " a"));
  EXPECT_THROW(Regex(" a"), GrammarError);
}

TEST(RegexTest, WithinJsonCharactersAreEscapedWhereTheyMustBe) {
  const auto automaton = JsonSchema(R"({"type":"string","pattern":"^[\"\\\\/\n\u0001x]{2}$"})");
  for (const char* text : {R"("\"\\")", R"("/\n")", R"("xx")"})
    EXPECT_TRUE(Accepts(automaton, text)) << text;
  for (const char* text : {R"("\/x")", "\"\nx\"", R"("\u000ax")", R"("x"x")"})
    EXPECT_FALSE(Accepts(automaton, text)) << text;
  const auto control = JsonSchema(R"({"type":"string","pattern":"^\\x01$"})");
  EXPECT_TRUE(Accepts(control, R"("\u0001")"));
}

TEST(RegexTest, RefusalsNameThePlace) {
  struct Case {
    const char *pattern, *words;
  };
  for (const Case& c : {Case{"a(?=b)", "byte 2"},
                        Case{"(?<!a)b", "looking ahead or behind"},
                        Case{R"((a)\1)", "escape is not supported"},
                        Case{R"(a\bb)", "escape is not supported"},
                        Case{R"(\p{L})", "escape is not supported"},
                        Case{"(a", "a ( without a )"},
                        Case{"a)", "a ) without a ("},
                        Case{"*a", "nothing to repeat"},
                        Case{"a**", "nothing to repeat"},
                        Case{"a{3,2}", "more to less"},
                        Case{"a{", "number of repeats"},
                        Case{"a{99999}", "10000"},
                        Case{"[b-a]", "is none"},
                        Case{"[a", "ends too soon"},
                        Case{"a^b", "beginning of the pattern"},
                        Case{"(a$|b)", "end of the pattern"},
                        Case{"a$b", "beginning and the end"},
                        Case{R"(\ud83d)", "half a character"},
                        Case{R"(\)", "escape is not supported"},
                        Case{"\xFF", "not UTF-8"},
                        Case{"[^\\s\\S]", "nothing can fit"},
                        Case{" a", "begin with a space"},
                        Case{"((a{100}){100}){100}", "states and edges"}}) {
    try {
      Regex(c.pattern);
      ADD_FAILURE() << c.pattern << " was taken";
    } catch (const GrammarError& error) {
      EXPECT_THAT(error.what(), HasSubstr(c.words)) << c.pattern;
    }
  }
  EXPECT_THROW(Regex(std::string(1000, '(')), GrammarError);
}

}  // namespace
}  // namespace llava::grammar
