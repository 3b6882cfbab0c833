// llava-model export.

#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/model/checkpoint/llava_model.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kModels = SourceDir() + "/deploy/models";

TEST(ExportCommandTest, WritesWhatIsPublishedAgain) {
  const TempFolder folder;
  const std::string out = (folder.path() / "out").string();
  const Outcome run = LlavaModel("export " + kModels + "/emoji " + out);
  ASSERT_EQ(run.code, 0) << run.error;
  EXPECT_THAT(run.output, AllOf(HasSubstr("exported " + out), HasSubstr("template emoji\n")));
  EXPECT_THAT(run.error, HasSubstr("exporting "));
  const Outcome verified = LlavaModel("verify " + out);
  EXPECT_THAT(verified.output, HasSubstr(": ok, ")) << verified.error;
  EXPECT_EQ(OpenTower(out).digest, OpenTower(kModels + "/emoji-tower").digest);

  ExpectOneLine(LlavaModel("export " + kModels + "/emoji " + out), 1, "is there already");
  const std::string half = out + "-half";
  ASSERT_EQ(LlavaModel("export " + out + " " + half + " --dtype bf16").code, 0);
  EXPECT_EQ(OpenTower(half).tensors.tensors().begin()->second.dtype, at::kBFloat16);
}

TEST(ExportCommandTest, TellsWhatAReaderCannotSee) {
  const TempFolder folder;
  const std::string source = (FixturesDir() / "orig-f32").string();
  const Outcome run = LlavaModel("export " + source + " " + (folder.path() / "a").string());
  EXPECT_THAT(run.output,
              AllOf(HasSubstr("template v1 (assumed"), HasSubstr("behind an earlier answer")))
      << run.error;
}

TEST(ExportCommandTest, FindsTheTower) {
  const TempFolder folder;
  const std::string alone = (folder.path() / "models/emoji").string();
  fs::create_directories(folder.path() / "models");
  fs::copy(kModels + "/emoji", alone, fs::copy_options::recursive);
  const std::string out = " " + (folder.path() / "out").string();
  ExpectOneLine(LlavaModel("export " + alone + out), 1, "name its folder with --tower");
  ExpectOneLine(
      LlavaModel("export " + alone + out + " --tower " + (FixturesDir() / "clip-tower").string()),
      1, "is not the tower of this model");
  EXPECT_EQ(LlavaModel("export " + alone + out + " --tower " + kModels + "/emoji-tower").code, 0);
  EXPECT_EQ(
      LlavaModel("export " + kModels + "/emoji/1/ " + (folder.path() / "again").string()).code, 0);
}

TEST(ExportCommandTest, WrongRequestsAreRefused) {
  const TempFolder folder;
  const std::string out = " " + (folder.path() / "out").string();
  ExpectOneLine(LlavaModel("export " + kModels + "/emoji"), 2, "FOLDER");
  ExpectOneLine(LlavaModel("export " + kModels + "/emoji" + out + " --dtype int8"), 2, "--dtype");
  ExpectOneLine(LlavaModel("export " + kModels + "/emoji-tower" + out), 1, "vision tower");
  ExpectOneLine(LlavaModel("export " + kModels + "/emoji /nowhere/out"), 1, "/nowhere");
  EXPECT_TRUE(fs::is_empty(folder.path()));
  const std::string packed = (folder.path() / "packed").string();
  ASSERT_EQ(LlavaModel("quantize " + kModels + "/emoji " + packed + " --dtype int8").code, 0);
  ExpectOneLine(LlavaModel("export " + packed + out), 1, "the checkpoint that it was made from");
  EXPECT_FALSE(fs::exists(folder.path() / "out"));
}

}  // namespace
}  // namespace llava
