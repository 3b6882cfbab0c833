#include "model/eval/scienceqa/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/eval/scienceqa/sample_problems.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ScienceScoreTest : public testing::Test {
 protected:
  ScienceScoreTest() {
    problems_ = ReadScienceProblems(folder_.Write("problems.json", SampleProblems()),
                                    folder_.Write("splits.json", SampleSplits()), "test");
  }

  const TempFolder folder_;
  std::vector<ScienceProblem> problems_;  // 10 (D), 1 (B), 2 (A), 3 (A)
};

TEST_F(ScienceScoreTest, CountsByClass) {
  const ScienceScore score = ScoreScience(problems_, {3, 1, kUnreadAnswer, 1});
  const Share expected[] = {{2, 2}, {0, 1}, {0, 1}, {0, 2}, {1, 2}, {1, 1}, {2, 2}, {0, 2}, {2, 4}};
  for (size_t i = 0; i < score.classes.size(); ++i) {
    EXPECT_EQ(score.classes[i], expected[i]) << kScienceClasses[i];
  }
  EXPECT_EQ(score.unread, 1);
  EXPECT_EQ(score.missing, 0);
  EXPECT_THAT(score.failed_ids, ElementsAre("2"));
  EXPECT_THAT(ErrorOf([&] { ScoreScience(problems_, {1}); }), HasSubstr("4 problems, but 1"));
}

TEST_F(ScienceScoreTest, TellsTheTableOfThePaper) {
  const std::string table =
      ScienceScoreTable(ScoreScience(problems_, {kAnswerOutOfRange, kMissingAnswer, 0, 0}));
  EXPECT_THAT(table, HasSubstr("    NAT    SOC    LAN |    TXT    IMG     NO |   G1-6  G7-12 |"
                               "    AVG\n"
                               "   0.00 100.00 100.00 | 100.00  50.00   0.00 |   0.00 100.00 |"
                               "  50.00\n"));
  EXPECT_THAT(table, HasSubstr("IMG      50.00    9.45 -  90.55       1 of 2\n"));
  EXPECT_THAT(table, HasSubstr("counted as wrong: 2 (1 missing, 0 not readable, 1 no such choice): "
                               "10 1\n"));
}

TEST_F(ScienceScoreTest, TellsJson) {
  const auto json = ScienceScoreJson(ScoreScience(problems_, {3, 1, 0, 1}));
  EXPECT_EQ(json["classes"]["AVG"]["acc"], 75.0);
  EXPECT_EQ(json["classes"]["AVG"]["right"], 3);
  EXPECT_EQ(json["classes"]["SOC"]["acc"], 0.0);
  EXPECT_EQ(json["failures"]["missing"], 0);
}

TEST_F(ScienceScoreTest, BoundsEnsembles) {
  EXPECT_EQ(RightInEither(problems_, {3, 0, 1, 0}, {0, 1, 1, 0}), (Share{3, 4}));
}

}  // namespace
}  // namespace llava
