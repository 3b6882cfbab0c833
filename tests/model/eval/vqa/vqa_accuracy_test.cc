#include "model/eval/vqa/vqa_accuracy.h"
#include "tests/support/error_of.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace llava {
namespace {

using testing::HasSubstr;

TEST(NormalizedVqaAnswerTest, FollowsTheVqaEvaluation) {
  const std::pair<const char*, const char*> cases[] = {
      {"  The Cat\n", "cat"},
      {"a cat\tand a dog", "cat and dog"},
      {"Two", "2"},
      {"none", "0"},
      {"ten of them", "10 of them"},
      {"eleven", "eleven"},
      {"yes.", "yes"},
      {"3.5", "3.5"},
      {"St. Mary", "st mary"},
      {"dont know", "don't know"},
      {"couldnt've", "couldn't've"},
      {"oclock", "o'clock"},
      {"its", "its"},
      // A sign becomes a space, unless a space stands beside one of its kind.
      {"black/white", "black white"},
      {"black/ white", "black white"},
      {"black / white", "black white"},
      {"black/white / red", "blackwhite red"},
      {"t-shirt", "t shirt"},
      {"what?!", "what"},
      // With a comma between digits all signs go without a space.
      {"1,000 t-shirts", "1000 tshirts"},
      {"cat, dog", "cat dog"},
      {"cat,dog", "cat dog"},
      {"it's", "it's"},
      {"", ""},
      {"the", ""},
  };
  for (const auto& [answer, normalized] : cases) {
    EXPECT_EQ(NormalizedVqaAnswer(answer), normalized) << answer;
  }
  EXPECT_EQ(NormalizedVqaAnswer("Macy's, the shop?", true), "macy 's shop");
  EXPECT_EQ(NormalizedVqaAnswer("cat,dog", true), "catdog");
}

TEST(VqaSoftAccuracyTest, LeavesEachPersonOutOnce) {
  const auto people = [](int cats, int dogs) {
    std::vector<std::string> answers(static_cast<size_t>(cats), "cat");
    answers.insert(answers.end(), static_cast<size_t>(dogs), "the Dog.");
    return answers;
  };
  EXPECT_DOUBLE_EQ(VqaSoftAccuracy("A cat", people(0, 10)), 0);
  EXPECT_NEAR(VqaSoftAccuracy("A cat", people(1, 9)), 0.3, 1e-12);  // 9 of 10 times 1 / 3
  EXPECT_NEAR(VqaSoftAccuracy("A cat", people(2, 8)), 0.6, 1e-12);
  EXPECT_NEAR(VqaSoftAccuracy("A cat", people(3, 7)), 0.9, 1e-12);
  EXPECT_DOUBLE_EQ(VqaSoftAccuracy("A cat", people(4, 6)), 1);
  EXPECT_DOUBLE_EQ(VqaSoftAccuracy("dog", people(0, 10)), 1);
  EXPECT_THAT(ErrorOf([&] { VqaSoftAccuracy("cat", people(1, 0)); }), HasSubstr("1 answers"));
}

TEST(VqaExactMatchTest, ForgivesCaseSpaceAndFullStop) {
  const std::vector<std::string> right = {"Red cat", "tabby."};
  EXPECT_TRUE(VqaExactMatch(" red cat. ", right));
  EXPECT_TRUE(VqaExactMatch("Tabby", right));
  EXPECT_FALSE(VqaExactMatch("a red cat", right));
  EXPECT_FALSE(VqaExactMatch("", right));
}

TEST(PopeTest, ReadsYesAndNoAsPublished) {
  for (const char* text : {"No", "no", "No, there is not.", "It is not. Yes", "I see no cat"}) {
    EXPECT_EQ(ReadYesNo(text), YesNo::kNo) << text;
  }
  for (const char* text : {"Yes", "yes.", "", "NO", "Nothing. No", "no!", "Maybe", "Yes\nno"}) {
    EXPECT_EQ(ReadYesNo(text), YesNo::kYes) << text;
  }
  EXPECT_TRUE(SaysYesOrNo("NO!"));
  EXPECT_TRUE(SaysYesOrNo("Well, yes"));
  EXPECT_FALSE(SaysYesOrNo("Nothing there"));
  EXPECT_FALSE(SaysYesOrNo(""));
}

TEST(PopeTest, CountsAndTellsItsFigures) {
  PopeCounts counts;
  EXPECT_TRUE(std::isnan(counts.accuracy()));
  EXPECT_TRUE(std::isnan(counts.f1()));
  for (int i = 0; i < 3; ++i) counts.Add(YesNo::kYes, "Yes");
  counts.Add(YesNo::kYes, "No");
  counts.Add(YesNo::kNo, "Maybe");
  for (int i = 0; i < 5; ++i) counts.Add(YesNo::kNo, "no");
  EXPECT_DOUBLE_EQ(counts.accuracy(), 0.8);
  EXPECT_DOUBLE_EQ(counts.precision(), 0.75);
  EXPECT_DOUBLE_EQ(counts.recall(), 0.75);
  EXPECT_DOUBLE_EQ(counts.f1(), 0.75);
  EXPECT_DOUBLE_EQ(counts.yes_ratio(), 0.4);
  EXPECT_EQ(counts.unclear, 1);
  PopeCounts none;
  none.Add(YesNo::kYes, "no");
  EXPECT_EQ(none.f1(), 0);
  EXPECT_TRUE(std::isnan(none.precision()));
  counts += none;
  EXPECT_EQ(counts.count(), 11);
}

}  // namespace
}  // namespace llava
