#include "model/eval/judge/summary.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

namespace llava {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;

JudgeReview Review(const std::string& category, double reference, double candidate) {
  const JudgeScores scores{reference, candidate};
  return {"1", category, "", scores, scores == kNoScores ? std::nullopt : std::optional(scores)};
}

TEST(SummarizeReviewsTest, TakesTheRatioOfMeans) {
  const auto rows = SummarizeReviews(
      {Review("detail", 8, 4), Review("conv", 4, 8), Review("conv", 8, 8), Review("conv", 9, 5)},
      {});
  ASSERT_EQ(rows.size(), 3);
  EXPECT_EQ(rows[0].category, "all");
  EXPECT_EQ(rows[1].category, "conv");
  EXPECT_EQ(rows[2].category, "detail");
  // Of all questions, not of the categories: 25 / 29.
  EXPECT_DOUBLE_EQ(rows[0].relative, 6.25 / 7.25 * 100);
  EXPECT_DOUBLE_EQ(rows[1].relative, 100);
  EXPECT_DOUBLE_EQ(rows[1].reference, 70);
  EXPECT_DOUBLE_EQ(rows[2].relative, 50);
  EXPECT_EQ(rows[1].win, 1);
  EXPECT_EQ(rows[1].tie, 1);
  EXPECT_EQ(rows[1].loss, 1);
  EXPECT_EQ(rows[1].count, 3);
}

TEST(SummarizeReviewsTest, RoundsTheMeansFirst) {
  // Means 20 / 3 = 6.667 and 22 / 3 = 7.333: 109.99, not 110.
  const auto rows = SummarizeReviews({Review("", 6, 7), Review("", 7, 7), Review("", 7, 8)}, {});
  ASSERT_EQ(rows.size(), 1);
  EXPECT_DOUBLE_EQ(rows[0].relative, 7.333 / 6.667 * 100);
  EXPECT_DOUBLE_EQ(rows[0].reference, 66.67);
  EXPECT_THAT(JudgeTable(rows), HasSubstr("all                     110.0      66.7      73.3 "));
}

// Thirty scores, whole or half, with this sum.
std::vector<double> ScoresWithSum(double sum) {
  std::vector<double> scores;
  int halves = static_cast<int>(sum * 2);
  for (int left = 30; left > 0; --left) {
    scores.push_back(halves / left / 2.0);
    halves -= halves / left;
  }
  return scores;
}

// What a user has printed for LLaVA 1.5 13B and the 90 questions about COCO: no other sums give it.
TEST(SummarizeReviewsTest, AgreesWithPublishedFigures) {
  std::vector<JudgeReview> reviews;
  const std::tuple<const char*, double, double> kSums[] = {
      {"complex", 242, 222.5}, {"conv", 251, 201}, {"detail", 237, 176.5}};
  for (const auto& [category, reference, candidate] : kSums) {
    const auto references = ScoresWithSum(reference), candidates = ScoresWithSum(candidate);
    for (size_t i = 0; i < 30; ++i) {
      reviews.push_back(Review(category, references[i], candidates[29 - i]));
    }
  }
  const std::string table = JudgeTable(SummarizeReviews(reviews, {}));
  for (const char* line : {"all                      82.2      81.1      66.7 ",
                           "complex                  91.9      80.7      74.2 ",
                           "conv                     80.1      83.7      67.0 ",
                           "detail                   74.5      79.0      58.8 "}) {
    EXPECT_THAT(table, HasSubstr(line));
  }
}

TEST(SummarizeReviewsTest, CountsScoresThatCannotBeReadAsPublished) {
  JudgeReview mended = Review("", -1, -1);
  mended.robust = JudgeScores{8, 6};
  const auto rows = SummarizeReviews({Review("", 8, 6), Review("", -1, -1), mended}, {});
  EXPECT_DOUBLE_EQ(rows[0].reference, 20);
  EXPECT_DOUBLE_EQ(rows[0].relative, 1.333 / 2 * 100);
  EXPECT_DOUBLE_EQ(rows[0].robust, 75);
  EXPECT_EQ(rows[0].unread, 1);
  EXPECT_EQ(rows[0].mended, 1);
  EXPECT_EQ(rows[0].loss, 2);
  EXPECT_THAT(JudgeTable(rows),
              HasSubstr("counted as -1 above: 2; read more kindly: 1, without "
                        "scores: 1\nrelative, of those read from 0 to 10: all 75.0\n"));
}

// Two means of -1 are no 100 %.
TEST(SummarizeReviewsTest, HasNoFigureWhereNothingWasRead) {
  JudgeReview mended = Review("conv", -1, -1);
  mended.robust = JudgeScores{8, 6};
  const auto rows = SummarizeReviews(
      {Review("conv", -1, -1), mended, Review("detail", 8, 6), Review("detail", -1, -1)}, {});
  const Json json = JudgeRowsJson(rows);
  for (const char* key : {"relative", "low", "high"}) {
    EXPECT_TRUE(json["conv"][key].is_null()) << key;
    EXPECT_TRUE(json["all"][key].is_number()) << "published: some do read";
  }
  EXPECT_EQ(json["conv"]["relative_of_read"], 75);
  EXPECT_DOUBLE_EQ(rows[2].relative, 2.5 / 3.5 * 100);
  EXPECT_THAT(JudgeTable(rows), HasSubstr("conv                        -     -10.0     -10.0"));
  const std::vector<JudgeReview> mute = {Review("", -1, -1)}, read = {Review("", 8, 6)};
  const auto average = AverageRuns({SummarizeReviews(read, {}), SummarizeReviews(mute, {})});
  EXPECT_TRUE(JudgeAveragesJson(average)["all"]["relative"]["mean"].is_null());
}

TEST(SummarizeReviewsTest, TellsScoresThatAreNotFrom0To10) {
  const TempFolder folder;
  const auto rows = SummarizeReviews(
      ReadReviews(folder.Write("reviews.jsonl",
                               R"({"question_id": 1, "tuple": [8, 6]})"
                               "\n"
                               R"({"question_id": 2, "tuple": [85, 90], "content": "85 90"})"
                               "\n")),
      {});
  EXPECT_DOUBLE_EQ(rows[0].reference, 465);
  EXPECT_EQ(rows[0].outside, 1);
  EXPECT_EQ(rows[0].unread, 0);
  EXPECT_EQ(rows[0].mended, 0);
  EXPECT_DOUBLE_EQ(rows[0].robust, 75);
  const std::string table = JudgeTable(rows);
  EXPECT_THAT(table, HasSubstr("not from 0 to 10, counted as they are above: 1\n"
                               "relative, of those read from 0 to 10: all 75.0\n"));
  EXPECT_THAT(table, testing::Not(HasSubstr("counted as -1")));
  EXPECT_EQ(JudgeRowsJson(rows)["all"]["outside"], 1);
}

// What people would read as scores stands further down.
TEST(SummarizeReviewsTest, TellsScoresThatAreNotFrom0To10BesideOnesThatAre) {
  JudgeReview review = Review("", 85, 90);
  review.robust = JudgeScores{8, 9};
  const auto rows = SummarizeReviews({review}, {});
  EXPECT_EQ(rows[0].outside, 1);
  EXPECT_EQ(rows[0].mended, 0);
  EXPECT_EQ(rows[0].win, 1);
  EXPECT_THAT(JudgeTable(rows), HasSubstr("read from 0 to 10: all 112.5\n"));
}

TEST(SummarizeReviewsTest, TellsAnIntervalThatDependsOnTheSeedAlone) {
  std::vector<JudgeReview> reviews;
  for (int i = 0; i < 40; ++i) reviews.push_back(Review("", 8, 4 + i % 5));
  const BootstrapOptions options{.samples = 4000, .seed = 3};
  const JudgeRow row = SummarizeReviews(reviews, options)[0],
                 again = SummarizeReviews(reviews, options)[0];
  EXPECT_EQ(row.interval.low, again.interval.low);
  EXPECT_NE(row.interval.low,
            SummarizeReviews(reviews, {.samples = 4000, .seed = 4})[0].interval.low);
  // The mean of 40 values of deviation sqrt(2): 6 +- 1.96 * 0.2236, as a share of 8.
  EXPECT_NEAR(row.interval.low, 75 - 5.48, 0.6);
  EXPECT_NEAR(row.interval.high, 75 + 5.48, 0.6);
  const JudgeRow sure = SummarizeReviews({Review("", 8, 6)}, options)[0];
  EXPECT_EQ(sure.interval.low, 75);
  EXPECT_EQ(sure.interval.high, 75);
}

TEST(AverageRunsTest, TakesTheMeanOfTheRuns) {
  const auto run = [](double candidate) {
    return SummarizeReviews({Review("conv", 10, candidate), Review("conv", 10, candidate)}, {});
  };
  const auto averages = AverageRuns({run(6), run(7), run(8)});
  ASSERT_EQ(averages.size(), 2);
  EXPECT_DOUBLE_EQ(averages[1].relative.mean, 70);
  EXPECT_DOUBLE_EQ(*averages[1].relative.deviation, 10);
  EXPECT_DOUBLE_EQ(averages[1].reference.mean, 100);
  EXPECT_THAT(JudgeAverageTable(averages), HasSubstr("70.0 ± 10.0"));
  EXPECT_THAT(ErrorOf([&] {
                AverageRuns({run(6), SummarizeReviews({Review("conv", 10, 6)}, {})});
              }),
              HasSubstr("differ in \"all\""));
}

// The figures of LLaVA 1.5 7B in the wild, which were published as 65.4: the mean of what the runs
// print, not of the exact ratios (65.47).
TEST(AverageRunsTest, AveragesPrintedFigures) {
  const auto run = [](double reference, double candidate) {
    std::vector<JudgeReview> reviews;
    for (int i = 0; i < 60; ++i) reviews.push_back(Review("", reference / 60, candidate / 60));
    return SummarizeReviews(reviews, {});
  };
  const auto averages = AverageRuns({run(522, 338), run(522, 341), run(520, 345)});
  ASSERT_EQ(averages.size(), 1);
  EXPECT_THAT(JudgeAverageTable(averages), HasSubstr("65.4 ± 0.8"));
}

}  // namespace
}  // namespace llava
