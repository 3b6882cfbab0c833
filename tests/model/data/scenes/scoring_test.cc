#include "model/data/scenes/scoring.h"
#include "tests/support/paths.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

namespace llava {
namespace {

// Table of the prototype's rule over answers as given, in other words, broken and strange.
TEST(ScoringTest, AgreesWithThePrototype) {
  std::ifstream file(SourceDir() + "/tests/model/data/scenes/scoring_golden.json");
  const auto golden = nlohmann::json::parse(file);
  ASSERT_GE(golden.size(), 1000u);
  for (const auto& one : golden) {
    const QuestionType type = QuestionTypeNamed(one.at("type").get<std::string>());
    EXPECT_EQ(KeyWords(type, one.at("answer").get<std::string>()),
              one.at("key").get<std::vector<std::string>>())
        << one.dump();
  }
}

TEST(ScoringTest, OtherWordsDoNotMatterButKeyWordsDo) {
  using enum QuestionType;
  EXPECT_TRUE(SameAnswer(kWhat, "A lion and two apples.", "I see two apples and one lion!"));
  EXPECT_FALSE(SameAnswer(kWhat, "A lion and two apples.", "A lion and an apple."));
  EXPECT_FALSE(SameAnswer(kWhat, "Two robots.", "Two robots and a hat."));
  EXPECT_TRUE(SameAnswer(kBrief, "A robot on the left and a robot at the top.", "Two robots."));
  EXPECT_FALSE(SameAnswer(kBrief, "Two robots.", "A robot on the left."));
  EXPECT_TRUE(SameAnswer(kSideOf, "On the left.", "It is on the left"));
  EXPECT_FALSE(SameAnswer(kSideOf, "On the left.", "On the left or on the right."));
  EXPECT_FALSE(SameAnswer(kExist, "Yes.", ""));
  EXPECT_TRUE(SameAnswer(kCount, "Four.", "There are four."));
  EXPECT_TRUE(SameAnswer(kWhere, "At the top left.", "at the left top"));
  EXPECT_FALSE(SameAnswer(kDetail, "A lion at the top.", "At the top a lion."));
}

TEST(ScoringTest, NamesThingsWithTheirNumbers) {
  using Things = std::vector<std::pair<std::string, int>>;
  EXPECT_EQ(NamedThings("Two snowmen, a fox and four mangoes."),
            (Things{{"fox", 1}, {"mango", 4}, {"snowman", 2}}));
  EXPECT_EQ(NamedThings("A lion at the top, a fox and two lions at the bottom."),
            (Things{{"fox", 1}, {"lion", 3}}));
  EXPECT_EQ(NamedThings("Nothing."), Things());
}

TEST(ScoringTest, BrokenUtf8EndsAWord) {
  using enum QuestionType;
  EXPECT_EQ(KeyWords(kSide, "lion\xFFpear"), (std::vector<std::string>{"lion", "pear"}));
  EXPECT_EQ(KeyWords(kSide, "lion\xC3"), (std::vector<std::string>{"lion"}));
}

}  // namespace
}  // namespace llava
