// llava-model list, pin, unpin, label, rollback, gc, diff and verify on a repository.
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/memory_tensors.h"
#include "model/checkpoint/repository.h"
#include "tests/model/checkpoint/llava_model.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class RepositoryCommandsTest : public testing::Test {
 protected:
  RepositoryCommandsTest() {
    PublishTower(OpenTower(FixturesDir() / "tiny-llava"), folder_.path(), "t");
    for (int i = 0; i < 3; ++i) PublishLanguage(language_, folder_.path(), "m");
  }
  // The output of a call that must succeed.
  static std::string Told(const std::string& arguments) {
    const Outcome run = LlavaModel(arguments);
    EXPECT_EQ(run.code, 0) << run.error;
    EXPECT_EQ(run.error, "");
    return run.output;
  }

  const TempFolder folder_;
  const std::string root_ = folder_.path().string();
  const LanguageCheckpoint language_ = OpenLanguage(FixturesDir() / "tiny-llava");
};

TEST_F(RepositoryCommandsTest, MarksAndLists) {
  EXPECT_THAT(Told("label " + root_ + "/m stable 1"),
              HasSubstr("/m: stable is version 1, was nothing"));
  EXPECT_THAT(Told("label " + root_ + "/m stable 2"), HasSubstr("was version 1"));
  EXPECT_THAT(Told("label " + root_ + "/m canary 3"), HasSubstr("canary is version 3"));
  EXPECT_THAT(Told("label " + root_ + "/m canary --remove"), HasSubstr("canary is taken away"));
  EXPECT_THAT(Told("pin " + root_ + "/m 1"), HasSubstr("/m/1: pinned"));
  WriteBytes(folder_.path() / "m/3/manifest.json", "{");
  const std::string table = Told("list " + root_);
  EXPECT_THAT(table, AllOf(HasSubstr("MODEL"), HasSubstr("language"), HasSubstr("tower"),
                           HasSubstr("pinned"), HasSubstr("stable"), HasSubstr("broken"),
                           HasSubstr("is not a JSON object")));
  const json listed = json::parse(Told("list --json " + root_ + " m"));
  ASSERT_EQ(listed["models"].size(), 1u);
  const json& model = listed["models"][0];
  EXPECT_EQ(model["labels"]["stable"].get<int>(), 2);
  EXPECT_EQ(model["versions"][0]["pinned"].get<bool>(), true);
  EXPECT_EQ(model["versions"][1]["labels"][0].get<std::string>(), "stable");
  EXPECT_EQ(model["versions"][1]["digest"].get<std::string>(),
            ToHex(Manifest::Read(folder_.path() / "m/2").digest));
  EXPECT_THAT(model["versions"][2]["error"].get<std::string>(), HasSubstr("manifest.json"));
  EXPECT_THAT(Told("rollback " + root_ + "/m"), HasSubstr("stable is version 1 again"));
  EXPECT_EQ(json::parse(Told("unpin --json " + root_ + "/m 1"))["pinned"].get<bool>(), false);

  ExpectOneLine(LlavaModel("rollback " + root_ + "/m"), 1, "no other version was stable");
  ExpectOneLine(LlavaModel("label " + root_ + "/m stable 9"), 1, "has no version 9");
  ExpectOneLine(LlavaModel("label " + root_ + "/m stable"), 2, "VERSION or --remove");
  ExpectOneLine(LlavaModel("pin " + root_ + "/nobody 1"), 1, "there is no such model");
  ExpectOneLine(LlavaModel("list /nowhere"), 1, "/nowhere");
}

TEST_F(RepositoryCommandsTest, Collects) {
  Told("label " + root_ + "/m stable 1");
  EXPECT_THAT(Told("gc " + root_ + "/m --keep 1 --dry-run"), HasSubstr("would remove version 2"));
  EXPECT_THAT(ModelRepository(root_).Versions("m"), ElementsAre(1, 2, 3));
  EXPECT_EQ(json::parse(Told("gc " + root_ + "/m --keep 1 --json"))["removed"].dump(), "[2]");
  EXPECT_THAT(ModelRepository(root_).Versions("m"), ElementsAre(1, 3));
  EXPECT_THAT(Told("gc " + root_ + "/t --keep 1"), HasSubstr("removed nothing"));
  ExpectOneLine(LlavaModel("gc " + root_ + "/m"), 2, "--keep");
  ExpectOneLine(LlavaModel("gc " + root_ + "/m --keep 0"), 2, "--keep");
}

TEST_F(RepositoryCommandsTest, TellsWhatChanged) {
  EXPECT_THAT(Told("diff " + root_ + "/m/1 " + root_ + "/m/2"),
              HasSubstr("0 of " + std::to_string(language_.tensors.tensors().size()) +
                        " tensors and 0 settings differ"));
  LanguageCheckpoint other = language_;
  const at::Tensor before = language_.tensors.Get("model.norm.weight");
  at::Tensor norm = before.clone();
  norm[1] += 2;
  ReplaceTensors(other.tensors, {{"model.norm.weight", norm}});
  other.config.features.select_layer = -1;
  PublishLanguage(other, folder_.path(), "m");
  const json told = json::parse(Told("diff --json " + root_ + "/m/1 " + root_ + "/m/4"));
  ASSERT_EQ(told["tensors"].size(), 1u) << told;
  const json& change = told["tensors"][0];
  EXPECT_EQ(change["name"].get<std::string>(), "model.norm.weight");
  EXPECT_EQ(change["what"].get<std::string>(), "changed");
  const double by = norm[1].item<double>() - before[1].item<double>();
  EXPECT_DOUBLE_EQ(change["max_abs"].get<double>(), by);
  EXPECT_NEAR(change["relative_norm"].get<double>(),
              by / before.to(at::kDouble).norm().item<double>(), 1e-6);
  ASSERT_EQ(told["settings"].size(), 1u);
  EXPECT_EQ(told["settings"][0]["name"].get<std::string>(), "config.features.select_layer");
  EXPECT_EQ(told["settings"][0]["to"].get<std::string>(), "-1");
  // Another layout of another model: shapes and names.
  const std::string other_model =
      Told("diff " + root_ + "/m/1 " + SourceDir() + "/deploy/models/emoji");
  EXPECT_THAT(other_model, AllOf(HasSubstr("reshaped"), HasSubstr("removed"), HasSubstr(" -> "),
                                 HasSubstr("config.decoder.hidden_size")));
  ExpectOneLine(LlavaModel("diff " + root_ + "/m " + root_ + "/t"), 1, "is a vision tower");
}

TEST_F(RepositoryCommandsTest, VerifyFindsWhatIsNoNumber) {
  EXPECT_EQ(json::parse(Told("verify --json " + root_ + "/m/1"))["ok"].get<bool>(), true);
  LanguageCheckpoint bad = language_;
  at::Tensor norm = bad.tensors.Get("model.norm.weight").clone();
  norm[0] = NAN;
  ReplaceTensors(bad.tensors, {{"model.norm.weight", norm}});
  PublishLanguage(bad, folder_.path(), "m");
  ExpectOneLine(LlavaModel("verify " + root_ + "/m"), 1,
                "1 value of tensor \"model.norm.weight\" is NaN or infinite");
}

}  // namespace
}  // namespace llava
