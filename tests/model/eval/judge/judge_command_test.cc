// llava-eval judge as a program.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/model/eval/eval_program.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using Json = nlohmann::json;

class JudgeCommandTest : public testing::Test {
 protected:
  const TempFolder folder_;
  const std::string one_ = folder_.Write(
      "one.jsonl",
      R"({"question_id": 1, "category": "conv", "content": "8 6\nx", "tuple": [8.0, 6.0]})"
      "\n"
      R"({"question_id": 2, "category": "detail", "content": "8, 7", "tuple": [-1, -1]})"
      "\n"
      R"({"question_id": 3, "category": "conv", "content": "Good.", "tuple": [-1, -1]})"
      "\n");
  const std::string two_ =
      folder_.Write("two.jsonl", R"({"question_id": 1, "category": "conv", "content": "8 8"})"
                                 "\n"
                                 R"({"question_id": 2, "category": "detail", "content": "8 8"})"
                                 "\n"
                                 R"({"question_id": 3, "category": "conv", "content": "8 8"})"
                                 "\n");
};

TEST_F(JudgeCommandTest, Summarizes) {
  const Outcome table = Eval("judge summarize " + one_ + " " + two_ + " 2>&1");
  EXPECT_EQ(table.code, 0) << table.output;
  // (6 - 1 - 1) / (8 - 1 - 1), rounded to three decimals first.
  EXPECT_THAT(table.output, HasSubstr("one.jsonl\n"));
  EXPECT_THAT(table.output, HasSubstr("all                      66.6      20.0      13.3 "));
  EXPECT_THAT(table.output, HasSubstr("read more kindly: 1, without scores: 1"));
  EXPECT_THAT(table.output, HasSubstr("mean of 2 runs"));
  const Outcome told = Eval("judge summarize --json " + one_ + " " + two_);
  const Json json = Json::parse(told.output);
  EXPECT_EQ(json["kind"], "judge");
  EXPECT_EQ(json["files"][1]["categories"]["conv"]["relative"], 100.0);
  EXPECT_EQ(json["files"][0]["categories"]["all"]["unread"], 1);
  // Of the figures as printed: 66.6, not 66.65.
  EXPECT_NEAR(json["average"]["all"]["relative"]["mean"].get<double>(), (66.6 + 100) / 2, 1e-6);
  const Outcome fewer = Eval("judge summarize --ignore 2,3 --json " + one_);
  EXPECT_EQ(Json::parse(fewer.output)["files"][0]["categories"]["all"]["relative"], 75.0);
  EXPECT_EQ(Eval("judge summarize --ignore 1,2,3 " + one_ + " 2>&1").code, 2);
}

TEST_F(JudgeCommandTest, TellsWhatIsMissing) {
  const std::string whole = R"({"question_id": 1, "content": "8 6", "questions": 3})"
                            "\n"
                            R"({"question_id": 2, "content": "8 6", "questions": 3})"
                            "\n";
  const Outcome alone = Eval("judge summarize " + folder_.Write("part.jsonl", whole));
  EXPECT_EQ(alone.code, 0);
  EXPECT_THAT(alone.output, HasSubstr("1 questions without a review"));
  const Json json = Json::parse(Eval("judge summarize --json " + folder_.At("part.jsonl")).output);
  EXPECT_EQ(json["files"][0]["missing"], 1);
  EXPECT_THAT(Eval("judge summarize " + one_).output, testing::Not(HasSubstr("without a review")));
}

TEST_F(JudgeCommandTest, ParsesStrictlyAndRobustly) {
  const Outcome told = Eval("judge parse " + one_ + " --out " + folder_.At("out.jsonl") + " 2>&1");
  EXPECT_EQ(told.code, 0);
  EXPECT_THAT(told.output, HasSubstr("3 reviews, scores read by the published rule 1, robustly 2, "
                                     "not 1\n  question 3: Good.\n"));
  EXPECT_THAT(folder_.Read("out.jsonl"), HasSubstr(R"("tuple":[-1.0,-1.0],"robust":[8.0,7.0])"));
  const Json json = Json::parse(Eval("judge parse --json " + one_).output);
  EXPECT_EQ(json[0]["unread"][0]["content"], "Good.");
  std::string chinese;
  for (int i = 0; i < 50; ++i) chinese += "好";
  const std::string other =
      folder_.Write("other.jsonl", Json{{"question_id", 1}, {"content", chinese}}.dump());
  EXPECT_THAT(Eval("judge parse " + other).output,
              HasSubstr("question 1: " + chinese.substr(0, 33 * 3) + "..\n"));
}

TEST_F(JudgeCommandTest, TellsWhatIsWrong) {
  EXPECT_EQ(Eval("judge 2>&1").code, 2);
  EXPECT_EQ(Eval("judge summarize 2>&1").code, 2);
  const Outcome missing = Eval("judge summarize /nowhere/x 2>&1");
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.output, HasSubstr("/nowhere/x"));
  const std::string broken =
      folder_.Write("broken.jsonl", "{\"question_id\": 1, \"tuple\": [1]}\n");
  const Outcome line = Eval("judge summarize " + broken + " 2>&1");
  EXPECT_EQ(line.code, 1);
  EXPECT_THAT(line.output, HasSubstr("broken.jsonl:1: \"tuple\""));
}

}  // namespace
}  // namespace llava
