#include "model/eval/judge/reviews.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::HasSubstr;
using Scores = std::optional<JudgeScores>;

TEST(ParseScoresTest, FollowsThePublishedRuleToTheLetter) {
  const std::pair<const char*, Scores> cases[] = {
      {"8 9\nBoth are good.", {{8, 9}}},
      {"8 9", {{8, 9}}},
      {"8,9\n", {{8, 9}}},
      {"7.5 10\n", {{7.5, 10}}},
      {"8 9\r\nBoth", {{8, 9}}},
      {"8\t 9", {{8, 9}}},
      {"+8 1e1", {{8, 10}}},
      {"1_0 8", {{10, 8}}},
      {"-1 95", {{-1, 95}}},
      {"8, 9\n", {}},
      {"8 9 \n", {}},
      {" 8 9", {}},
      {"8  9", {}},
      {"8\t9", {}},
      {"\n8 9", {}},
      {"**8** **9**", {}},
      {"8/10 9/10", {}},
      {"Assistant 1: 8", {}},
      {"eight nine", {}},
      {"8_ 9", {}},
      {"nan nan", {}},
      {"8 inf", {}},
      {"+-8 9", {}},
      {"0x8 9", {}},
      {"8 9 10", {}},
      {"8", {}},
      {"", {}},
  };
  for (const auto& [review, scores] : cases) {
    EXPECT_EQ(ParseScoresStrictly(review), scores) << review;
  }
}

TEST(ParseScoresTest, ReadsWhatPeopleWouldRead) {
  const std::pair<const char*, Scores> cases[] = {
      {"8 9\nBoth", {{8, 9}}},
      {"8, 9\nBoth", {{8, 9}}},
      {" 8   9  \nBoth", {{8, 9}}},
      {"\n\n8 9\nBoth", {{8, 9}}},
      {"**8** **9**\n", {{8, 9}}},
      {"**8 9**\n", {{8, 9}}},
      {"`8 9`\n", {{8, 9}}},
      {"8/10 9/10", {{8, 9}}},
      {"8/10, 10/10", {{8, 10}}},
      {"10 10", {{10, 10}}},
      {"Scores: 8 and 9.5", {{8, 9.5}}},
      {"Assistant 1: 8, Assistant 2: 9\nThe first", {{8, 9}}},
      {"Assistant 1: 8 out of 10\nAssistant 2: 10 out of 10\n", {{8, 10}}},
      {"**Assistant 1:** 7/10\n\n**Assistant 2:** 6/10\n", {{7, 6}}},
      {"Here are my scores:\n8 9\nBecause", {{8, 9}}},
      {"I read both of the 2 answers.\n\n8 9", {{8, 9}}},
      {"8 9. Both assistants name the 3 cats.", {{8, 9}}},
      {"Step 1 is right, step 2 is wrong.\nThe scores are (10, 3).", {{10, 3}}},
      {"First (1, 2)? No.\nscores = (5, 4)", {{5, 4}}},
      {"8-9", {{8, 9}}},
      {"Assistant 1 - 8\nAssistant 2 - 9", {{8, 9}}},
      {"- Assistant 1: 8\n- Assistant 2: 9", {{8, 9}}},
      {"-5, 8", {}},
      {"Scores: -5 and 8", {}},
      {"**-1** **-1**", {}},
      {"Assistant 1: -3\nAssistant 2: 4", {}},
      {"85 90", {}},
      {"8 95\nBoth", {}},
      {"Both are good.", {}},
      {"Assistant 1 is better than Assistant 2.", {}},
      {"I cannot rate pictures from 2023 12 31.", {}},
      {"8\nBoth", {}},
      {"", {}},
  };
  for (const auto& [review, scores] : cases) {
    EXPECT_EQ(ParseScoresRobustly(review), scores) << review;
  }
}

TEST(ReadReviewsTest, TakesBothPublishedForms) {
  const TempFolder folder;
  const std::string path = folder.Write(
      "reviews.jsonl",
      R"({"id": 1, "question_id": 7, "category": "conv", "content": "8, 9\n", "tuple": [-1, -1]})"
      "\n"
      R"({"review_id": "a", "question_id": "b", "text": "8 9", "score": [8.0, 9.0]})"
      "\n"
      R"({"question_id": 3, "content": "6 5\nwell"})"
      "\n"
      R"({"question_id": 4, "content": "well"})"
      "\n"
      R"({"question_id": 5, "content": "85 90\nof 100"})"
      "\n"
      R"({"question_id": 6, "content": "85 90\nOf 10: 8 9", "tuple": [85, 90]})"
      "\n");
  const std::vector<JudgeReview> reviews = ReadReviews(path);
  ASSERT_EQ(reviews.size(), 6);
  EXPECT_EQ(reviews[0].question_id, "7");
  EXPECT_EQ(reviews[0].category, "conv");
  EXPECT_EQ(reviews[0].published, kNoScores);
  EXPECT_EQ(reviews[0].robust, (JudgeScores{8, 9}));
  EXPECT_EQ(reviews[1].category, "");
  EXPECT_EQ(reviews[1].content, "8 9");
  EXPECT_EQ(reviews[1].published, (JudgeScores{8, 9}));
  EXPECT_EQ(reviews[2].published, (JudgeScores{6, 5}));
  EXPECT_EQ(reviews[3].published, kNoScores);
  EXPECT_EQ(reviews[3].robust, std::nullopt);
  EXPECT_EQ(reviews[4].published, (JudgeScores{85, 90}));
  EXPECT_EQ(reviews[4].robust, std::nullopt);
  EXPECT_EQ(reviews[5].published, (JudgeScores{85, 90}));
}

TEST(ReadReviewsTest, NamesTheLineThatIsNone) {
  const TempFolder folder;
  const auto error = [&folder](const std::string& line) {
    const std::string good = R"({"question_id": 1, "tuple": [1, 2]})";
    const std::string path = folder.Write("r.jsonl", good + "\n" + line + "\n");
    return ErrorOf([&] { ReadReviews(path); });
  };
  EXPECT_THAT(error(R"({"question_id": 2, "tuple": [1, 2, 3]})"),
              HasSubstr("r.jsonl:2: \"tuple\" has 3 numbers"));
  EXPECT_THAT(error(R"({"question_id": 2, "tuple": ["8", "9"]})"),
              HasSubstr("r.jsonl:2: \"tuple\""));
  EXPECT_THAT(error(R"({"question_id": 2})"), HasSubstr("r.jsonl:2: \"tuple\" is missing"));
  EXPECT_THAT(error(R"({"tuple": [1, 2]})"), HasSubstr("r.jsonl:2: \"question_id\" is missing"));
  EXPECT_THAT(ErrorOf([&] { ReadReviews(folder.Write("e.jsonl", "\n")); }),
              HasSubstr("e.jsonl: has no reviews"));
}

}  // namespace
}  // namespace llava
