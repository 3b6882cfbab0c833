#include "model/eval/scienceqa/answers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/eval/scienceqa/sample_problems.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using enum AnswerReading;
using testing::ElementsAre;
using testing::HasSubstr;

const std::vector<std::string> kThree = {"a cod", "a wren", "an owl"};

TEST(ReadAnswerTest, FollowsThePublishedRules) {
  EXPECT_EQ(ReadAnswer("B", kThree, kPublished), 1);
  EXPECT_EQ(ReadAnswer("C. an owl", kThree, kPublished), 2);
  EXPECT_EQ(ReadAnswer("So it flies.\n The answer is B.", kThree, kPublished), 1);
  // The full stop of the rule stands for any character.
  EXPECT_EQ(ReadAnswer("The answer is B!", kThree, kPublished), 1);
  EXPECT_EQ(ReadAnswer("The answer is B because", kThree, kPublished), 1);
  // Letters without a choice: A to E, and any in the sentence.
  EXPECT_EQ(ReadAnswer("D", kThree, kPublished), kAnswerOutOfRange);
  EXPECT_EQ(ReadAnswer("F", kThree, kPublished), kUnreadAnswer);
  EXPECT_EQ(ReadAnswer("The answer is Z.", kThree, kPublished), kAnswerOutOfRange);
}

TEST(ReadAnswerTest, IsAsStrictAsThePublishedRules) {
  for (const char* text :
       {"", "b", "B.", "B\n", " B", "(B)", "B.an owl", "The answer is B", "The answer is B\n",
        "the answer is B.", "The answer is A. The answer is B.", "ANSWER: B.", "a wren"}) {
    EXPECT_EQ(ReadAnswer(text, kThree, kPublished), kUnreadAnswer) << text;
  }
}

TEST(ReadAnswerTest, TakesTheSentenceAloneForEnsembles) {
  EXPECT_EQ(ReadAnswer("B", kThree, kSentence), kUnreadAnswer);
  EXPECT_EQ(ReadAnswer("C. The answer is A.", kThree, kSentence), 0);
}

TEST(ReadAnswerTest, ReadsMoreIfItMay) {
  const std::pair<const char*, int> cases[] = {
      {"B", 1},
      {"b", 1},
      {"(b)", 1},
      {"**B**", 1},
      {"B.", 1},
      {"B) a wren", 1},
      {"LECTURE: Birds fly.\n###\nANSWER: C.", 2},
      {"The answer is A. No, wait. The answer is B.", 1},
      {"The answer is B", 1},
      {"I think the answer is (C) an owl", 2},
      {"The answer is a wren.", 1},
      {"It must be a wren, I think", 1},
      {"A wren", 1},
      {"a cod or a wren", kUnreadAnswer},
      {"a wrench", kUnreadAnswer},
      {"An animal", kUnreadAnswer},
      {"", kUnreadAnswer},
  };
  for (const auto& [text, choice] : cases) {
    EXPECT_EQ(ReadAnswer(text, kThree, kLenient), choice) << text;
  }
}

class PredictionsTest : public testing::Test {
 protected:
  PredictionsTest() {
    problems_ = ReadScienceProblems(folder_.Write("problems.json", SampleProblems()),
                                    folder_.Write("splits.json", SampleSplits()), "test");
  }
  SciencePredictions Read(const std::string& content) const {
    return ReadSciencePredictions(folder_.Write("predictions", content));
  }
  std::vector<int> Chosen(const std::string& content, bool texts_only = false) const {
    return ChosenAnswers(problems_, Read(content), kPublished, texts_only);
  }

  const TempFolder folder_;
  std::vector<ScienceProblem> problems_;  // 10, 1, 2, 3
};

TEST_F(PredictionsTest, ComeFromAResultFile) {
  const std::string file = R"({"acc": 50.0, "correct": 2, "count": 4,
      "results": {"10": 3, "1": "0", "2": -1, "3": 2},
      "outputs": {"10": "A", "1": "The answer is B.", "2": "C", "3": "so"}})";
  EXPECT_EQ(Read(file).stated_correct, 2);
  EXPECT_THAT(Chosen(file), ElementsAre(3, 0, kUnreadAnswer, kAnswerOutOfRange));
  EXPECT_THAT(Chosen(file, true), ElementsAre(0, 1, 2, kUnreadAnswer));
  EXPECT_THAT(Chosen(R"({"outputs": {"1": "B", "77": "A"}})"),
              ElementsAre(kMissingAnswer, 1, kMissingAnswer, kMissingAnswer));
}

TEST_F(PredictionsTest, ComeFromLines) {
  EXPECT_THAT(Chosen("{\"question_id\": \"10\", \"prompt\": \"\", \"text\": \"D\"}\n"
                     "{\"question_id\": 1, \"text\": \"A\"}\n"
                     "{\"id\": \"2\", \"output\": \"C. rock\"}\n"
                     "{\"question_id\": \"3\", \"choice\": 1}\n"
                     "{\"question_id\": \"1\", \"text\": \"B\"}\n"),
              ElementsAre(3, 1, 2, 1));
  EXPECT_THAT(Chosen("{\"question_id\": 1, \"text\": \"A\"}"),
              ElementsAre(kMissingAnswer, 0, kMissingAnswer, kMissingAnswer));
  EXPECT_EQ(Read("{\"id\": 1, \"text\": \"A\"}\n{\"id\": 1, \"text\": \"B\"}\n").repeated, 1);
}

TEST_F(PredictionsTest, AreNamedWhereTheyAreWrong) {
  EXPECT_THAT(ErrorOf([&] { Read("{\"id\": 1, \"text\": \"A\"}\n{\"id\": 2}\n"); }),
              HasSubstr("predictions:2: \"text\" is missing"));
  EXPECT_THAT(ErrorOf([&] { Read("{\"id\": 1, \"text\": \"A\"}\n{\"id\":"); }),
              HasSubstr("predictions:2: no JSON"));
  EXPECT_THAT(ErrorOf([&] { Read(R"({"results": {"1": "B"}})"); }),
              HasSubstr("results: \"1\" is \"B\", the number of a choice is expected"));
  EXPECT_THAT(ErrorOf([&] { Read(R"({"acc": 3})"); }), HasSubstr("neither \"results\""));
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_THAT(ErrorOf([&] { Read("{\"results\": " + deep + "}"); }),
              HasSubstr("predictions:1: no JSON: has more than 200 levels"));
  EXPECT_THAT(ErrorOf([] { ReadSciencePredictions("/nowhere/x"); }), HasSubstr("/nowhere/x"));
}

TEST(FallBackTest, TakesTheOtherWhereThereIsNoAnswer) {
  EXPECT_THAT(FallBack({kUnreadAnswer, kMissingAnswer, kAnswerOutOfRange, 2}, {0, 1, 2, 3}),
              ElementsAre(0, 1, kAnswerOutOfRange, 2));
}

}  // namespace
}  // namespace llava
