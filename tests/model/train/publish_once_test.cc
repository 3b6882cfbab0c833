#include "model/train/publish_once.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "model/checkpoint/manifest.h"
#include "model/checkpoint/version_folder.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

class PublishOnceTest : public testing::Test {
 protected:
  PublishOnceTest() { fs::create_directories(run_); }

  // A version as far as anybody looks into it.
  fs::path Make(const std::string& name, const Json& recipe) const {
    Manifest manifest;
    manifest.name = name;
    manifest.version = NewestVersion(root_ / name).value_or(0) + 1;
    manifest.recipe = recipe.dump();
    const fs::path folder = root_ / name / std::to_string(manifest.version);
    fs::create_directories(folder);
    WriteBytes(folder / "manifest.json", manifest.ToJson());
    return folder;
  }
  fs::path Publish(const std::string& name) {
    return PublishOnce(run_, root_, name, recipe_, [&] {
      ++published_;
      const fs::path folder = Make(name, recipe_);
      if (die_) throw std::runtime_error("killed");
      return folder;
    });
  }

  const TempFolder folder_;
  const fs::path run_ = folder_.path() / "run", root_ = folder_.path() / "models";
  const Json recipe_ = {{"steps", 5}, {"learning_rate", 2e-5}};
  int published_ = 0;
  bool die_ = false;
};

TEST_F(PublishOnceTest, ARunThatGoesOnOnOtherDevicesIsTheSame) {
  Json begun = recipe_, goes_on = recipe_;
  begun["device"] = "cuda:all";
  goes_on["device"] = "cuda:0";
  EXPECT_THROW(PublishOnce(run_, root_, "a", begun,
                           [&]() -> fs::path {
                             Make("a", begun);
                             throw std::runtime_error("killed");
                           }),
               std::runtime_error);
  EXPECT_EQ(PublishOnce(run_, root_, "a", goes_on, [&] { return Make("a", goes_on); }),
            root_ / "a/1");
}

TEST_F(PublishOnceTest, RepeatsTheFolderOfTheSameModelAlone) {
  EXPECT_EQ(Publish("a"), root_ / "a/1");
  EXPECT_EQ(Publish("a"), root_ / "a/1");
  EXPECT_EQ(published_, 1);
  EXPECT_EQ(Publish("b"), root_ / "b/1") << "another name is another wish";
  EXPECT_EQ(Publish("a"), root_ / "a/1");
  EXPECT_EQ(Publish("b"), root_ / "b/1");
  EXPECT_EQ(published_, 2);
  EXPECT_EQ(Json::parse(ReadBytes(run_ / "published.json"))["folder"], (root_ / "b/1").string());
  Make("a", {{"steps", 6}});
  fs::remove_all(root_ / "a/1");
  EXPECT_EQ(Publish("a"), root_ / "a/3") << "what is gone is made anew";
  EXPECT_EQ(published_, 3);
}

TEST_F(PublishOnceTest, KnowsTheFilesOfEarlierPrograms) {
  const fs::path folder = Make("a", recipe_);
  WriteBytes(run_ / "published.json", Json{{"folder", folder.string()}}.dump());
  EXPECT_EQ(Publish("a"), folder);
  EXPECT_EQ(published_, 0);
  EXPECT_EQ(Publish("b"), root_ / "b/1");
}

TEST_F(PublishOnceTest, AKilledCallLeavesNoSecondVersion) {
  Make("a", recipe_);  // of another run of this recipe
  die_ = true;
  EXPECT_THROW(Publish("a"), std::runtime_error);
  die_ = false;
  EXPECT_FALSE(fs::exists(run_ / "published.json"));
  EXPECT_EQ(Publish("a"), root_ / "a/2");
  EXPECT_EQ(Publish("a"), root_ / "a/2");
  EXPECT_EQ(published_, 1);
  EXPECT_FALSE(fs::exists(run_ / "publishing.json"));
}

}  // namespace
}  // namespace llava
