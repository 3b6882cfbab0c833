// llava-eval report as a program.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/model/eval/eval_program.h"
#include "tests/model/eval/scienceqa/sample_problems.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(ReportCommandTest, WritesWhatTheOtherCommandsMeasured) {
  const TempFolder folder;
  // Real results, so that writers and reader agree.
  const std::string predictions =
      folder.Write("p.json", R"({"results": {"10": 3, "1": 1, "2": 0}})");
  const Outcome science = Eval(
      "scienceqa score --json --problems " + folder.Write("problems.json", SampleProblems()) +
      " --splits " + folder.Write("splits.json", SampleSplits()) + " --predictions " + predictions);
  const Outcome judge =
      Eval("judge summarize --json " +
           folder.Write("r.jsonl", R"({"question_id": 1, "category": "conv", "tuple": [8, 6]})"));
  const std::string files = "ours=" + folder.Write("science.json", science.output) + " " +
                            folder.Write("judged.json", judge.output);
  const Outcome printed = Eval("report " + files + " 2>&1");
  EXPECT_EQ(printed.code, 0) << printed.output;
  EXPECT_THAT(printed.output, HasSubstr("| **ours** | 100.00 | 0.00 | 100.00 |"));
  EXPECT_THAT(printed.output, HasSubstr("| **judged** | 75.0 |  |  | 75.0 (75.0 - 75.0) |\n"));
  EXPECT_THAT(printed.output, HasSubstr("| LLaVA 13B (published) | 90.36 |"));
  const Outcome written = Eval("report " + files + " --title Mine --html " + folder.At("r.html") +
                               " --markdown " + folder.At("r.md") + " 2>&1");
  EXPECT_EQ(written.code, 0);
  EXPECT_EQ(written.output, "");
  EXPECT_THAT(folder.Read("r.html"), StartsWith("<!doctype html>"));
  EXPECT_THAT(folder.Read("r.md"), StartsWith("# Mine\n"));
  EXPECT_EQ(Eval("report 2>&1").code, 2);
  EXPECT_EQ(Eval("report " + predictions + " 2>&1").code, 1);
  EXPECT_EQ(Eval("report " + files + " --html /nowhere/x.html 2>&1").code, 1);
}

}  // namespace
}  // namespace llava
