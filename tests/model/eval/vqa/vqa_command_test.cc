// llava-eval vqa as a program.

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

class VqaCommandTest : public testing::Test {
 protected:
  const TempFolder folder_;
  const std::string annotations_ = folder_.Write(
      "annotations.jsonl",
      R"({"question_id": 1, "type": "pet", "answers": ["cat", "cat", "cat", "cat", "dog"]})"
      "\n"
      R"({"question_id": 2, "type": "number", "answers": ["2", "two", "2", "3", "2"]})"
      "\n"
      R"({"question_id": 3, "type": "pet", "answers": ["no", "no", "yes"]})"
      "\n");
  const std::string answers_ =
      folder_.Write("answers.jsonl", R"({"question_id": 1, "text": "A cat."})"
                                     "\n"
                                     R"({"question_id": 2, "text": "2"})"
                                     "\n"
                                     R"({"question_id": 9, "text": "x"})"
                                     "\n");
};

TEST_F(VqaCommandTest, MeasuresAccuracy) {
  const std::string flags = " --annotations " + annotations_ + " --answers " + answers_;
  const Outcome soft = Eval("vqa soft --by type" + flags + " 2>&1");
  EXPECT_EQ(soft.code, 0) << soft.output;
  EXPECT_THAT(soft.output, HasSubstr("soft accuracy              66.67 of 3 questions\n"));
  EXPECT_THAT(soft.output, HasSubstr("  number                  100.00 of 1\n"));
  EXPECT_THAT(soft.output, HasSubstr("1 without an answer, counted as wrong\n"));
  EXPECT_THAT(soft.output, HasSubstr("1 answers to other questions are left out\n"));
  const Json exact = Json::parse(Eval("vqa exact --json" + flags).output);
  EXPECT_EQ(exact["metric"], "exact");
  EXPECT_NEAR(exact["acc"].get<double>(), 100.0 / 3, 1e-9);  // "A cat" is not "cat"
}

TEST_F(VqaCommandTest, MeasuresPope) {
  const std::string labels = folder_.Write(
      "coco_pope_random.json",
      "{\"question_id\": 1, \"label\": \"yes\"}\n{\"question_id\": 2, \"label\": \"no\"}\n");
  const std::string flags = " --labels " + labels + " --answers " + answers_;
  const Outcome told = Eval("vqa pope" + flags + " 2>&1");
  EXPECT_EQ(told.code, 0) << told.output;
  EXPECT_THAT(told.output, HasSubstr("random          0.667    0.500     0.500  1.000     1.000"));
  const Json json = Json::parse(Eval("vqa pope --json" + flags).output);
  EXPECT_EQ(json["categories"]["random"]["unclear"], 2);
  EXPECT_EQ(json["all"]["true_yes"], 1);
}

TEST_F(VqaCommandTest, TellsWhatIsWrong) {
  EXPECT_EQ(Eval("vqa 2>&1").code, 2);
  EXPECT_EQ(Eval("vqa soft 2>&1").code, 2);
  const Outcome missing = Eval("vqa soft --annotations /nowhere/x --answers " + answers_ + " 2>&1");
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.output, HasSubstr("/nowhere/x"));
  const std::string single =
      folder_.Write("single.jsonl", R"({"question_id": 1, "answer": "cat"})");
  EXPECT_EQ(Eval("vqa soft --annotations " + single + " --answers " + answers_ + " 2>&1").code, 2);
}

}  // namespace
}  // namespace llava
