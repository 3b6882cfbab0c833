#include "model/eval/scienceqa/problems.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/eval/scienceqa/sample_problems.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Ids(const std::vector<ScienceProblem>& problems) {
  std::vector<std::string> ids;
  for (const ScienceProblem& problem : problems) ids.push_back(problem.id);
  return ids;
}

TEST(ScienceProblemsTest, HaveTheOrderOfTheSplit) {
  const TempFolder folder;
  const std::string problems = folder.Write("problems.json", SampleProblems());
  const std::string splits = folder.Write("splits.json", SampleSplits());
  const auto test = ReadScienceProblems(problems, splits, "test");
  EXPECT_THAT(Ids(test), ElementsAre("10", "1", "2", "3"));
  EXPECT_EQ(test[1].question, "Which is a bird?");
  EXPECT_THAT(test[1].choices, ElementsAre("cod", "wren"));
  EXPECT_EQ(test[1].answer, 1);
  EXPECT_EQ(test[1].grade, 2);
  EXPECT_EQ(test[1].image, "image.png");
  EXPECT_EQ(test[2].image, "");
  EXPECT_EQ(test[2].hint, "Read the list.");
  // By number, not by text.
  EXPECT_THAT(Ids(ReadScienceProblems(problems, "", "test")), ElementsAre("1", "2", "3", "10"));
}

TEST(ScienceProblemsTest, AreNamedWhereTheyAreWrong) {
  const TempFolder folder;
  const std::string splits = folder.Write("splits.json", R"({"test": ["1"], "more": ["1", "2"]})");
  const auto error = [&](const std::string& problem, const char* split = "test") {
    const std::string problems = folder.Write("problems.json", R"({"1": {)" + problem + "}}");
    return ErrorOf([&] { ReadScienceProblems(problems, splits, split); });
  };
  const std::string good = R"("question": "a?", "choices": ["b", "c"], "answer": 1)";
  EXPECT_EQ(error(good), "");
  EXPECT_THAT(error(R"("question": "a?", "choices": ["b", "c"], "answer": 2)"),
              HasSubstr("problems.json: 1: \"answer\" is 2, there are 2 choices"));
  EXPECT_THAT(error(R"("question": "a?", "choices": ["b"], "answer": 0)"),
              HasSubstr("\"choices\" are 1"));
  EXPECT_THAT(error(R"("question": "a?", "choices": [1, 2], "answer": 0)"), HasSubstr("choices"));
  EXPECT_THAT(error(R"("choices": ["b", "c"], "answer": 1)"), HasSubstr("\"question\" is missing"));
  EXPECT_THAT(error(good + R"(, "grade": "grade13")"), HasSubstr("grade13"));
  EXPECT_THAT(error(R"(oops)"),
              HasSubstr("problems.json: is not a JSON object, at line 1, column 8: "));
  EXPECT_THAT(error(good, "dev"), HasSubstr("\"dev\"; the splits are \"more\" \"test\""));
  EXPECT_THAT(error(good, "more"), HasSubstr("has no problem 2"));
  const std::string twice = folder.Write("twice.json", R"({"test": ["1", "1"]})");
  EXPECT_THAT(ErrorOf([&] { ReadScienceProblems(folder.At("problems.json"), twice, "test"); }),
              HasSubstr("problem 1 twice"));
}

}  // namespace
}  // namespace llava
