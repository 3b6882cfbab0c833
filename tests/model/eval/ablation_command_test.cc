// llava-eval ablation as a program.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "tests/model/eval/eval_program.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class AblationCommandTest : public testing::Test {
 protected:
  AblationCommandTest() {
    // Real results, so that writer and reader agree.
    const std::string models = SourceDir() + "/deploy/models/";
    const Outcome measured =
        Eval("chat-quality " + models + "emoji --tower " + models +
             "emoji-tower --per-type 1 --conditions picture --json 2>/dev/null");
    EXPECT_EQ(measured.code, 0);
    for (const char* name : {"a.json", "b.json", "c.json"}) folder_.Write(name, measured.output);
  }

  std::string At(const char* name) const { return folder_.At(name); }
  std::string Results() const {
    return "ablation full=" + At("a.json") + " 'stage 2 only=" + At("b.json") +
           "' full=" + At("c.json") + " ";
  }

  const TempFolder folder_;
};

TEST_F(AblationCommandTest, WritesTableAndChart) {
  const Outcome printed = Eval(Results() + "2>&1");
  EXPECT_EQ(printed.code, 0);
  EXPECT_THAT(printed.output, StartsWith("| group | full | stage 2 only |\n| --- | --- | --- |\n"));
  EXPECT_THAT(printed.output, HasSubstr("| naming | "));
  EXPECT_THAT(printed.output, HasSubstr("| **average** | "));
  EXPECT_THAT(printed.output, HasSubstr("| seeds | 2 | 1 |\n"));
  const Outcome written = Eval(Results() + "--reference full --markdown " + At("table.md") +
                               " --plot " + At("chart.png") + " 2>&1");
  EXPECT_EQ(written.code, 0);
  EXPECT_EQ(written.output, "");
  EXPECT_THAT(folder_.Read("table.md"), HasSubstr(" (0.0) |"));
  EXPECT_THAT(folder_.Read("chart.png"), StartsWith("\x89PNG"));
}

TEST_F(AblationCommandTest, TellsWhatDoesNotFit) {
  EXPECT_EQ(Eval("ablation 2>&1").code, 2);
  for (const char* result : {"table", "=x.json", "full="}) {
    const Outcome outcome = Eval(std::string("ablation ") + result + " 2>&1");
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(outcome.output,
              "llava-eval: \"" + std::string(result) + "\": expected VARIANT=FILE\n");
  }
  const Outcome reference = Eval(Results() + "--reference whole 2>&1");
  EXPECT_EQ(reference.code, 2);
  EXPECT_THAT(reference.output, HasSubstr("\"whole\""));
  const Outcome missing = Eval("ablation full=/nowhere/x.json 2>&1");
  EXPECT_EQ(missing.code, 1);
  EXPECT_EQ(missing.output,
            "llava-eval: /nowhere/x.json: cannot read: No such file or directory\n");
  const Outcome full = Eval(Results() + "--plot /nowhere/x.png 2>&1");
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.output, HasSubstr("/nowhere/x.png"));
  const Outcome table = Eval(Results() + "--markdown /nowhere/x.md 2>&1");
  EXPECT_EQ(table.code, 1);
  EXPECT_THAT(table.output, HasSubstr("/nowhere/x.md"));
}

}  // namespace
}  // namespace llava
