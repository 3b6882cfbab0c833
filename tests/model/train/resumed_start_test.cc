// A run goes on with the model and the tower that it began with, whatever has been published since.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdio.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/memory_tensors.h"
#include "model/train/run_folder.h"
#include "model/train/run_start.h"
#include "model/train/train_command.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class ResumedStartTest : public testing::Test {
 protected:
  ResumedStartTest() {
    data_ = scratch_.Write("data.json", R"([
        {"id": "a", "conversations": [{"from": "human", "value": "Can a boat fly?"},
                                      {"from": "gpt", "value": "No."}]},
        {"id": "b", "image": "plain.png",
         "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                           {"from": "gpt", "value": "A red house."}]}])");
    PublishTower(OpenTower(FixturesDir() / "tiny-llava"), root_, "eye");
    PublishLanguage(OpenLanguage(FixturesDir() / "tiny-llava"), root_, "chat");
  }

  // Two steps of one run; publishes it unless `name` is empty. Returns what it told.
  std::string Run(const std::string& kind, const std::string& name,
                  const std::vector<std::string>& more = {}) {
    TrainCommand command;
    command.kind = kind;
    command.settings = {"model=" + (root_ / "chat").string(),
                        "tower=" + (root_ / "eye").string(),
                        "data=" + data_.string(),
                        "images=" + (FixturesDir() / "images").string(),
                        "steps=2",
                        "batch_size=2",
                        "warmup_ratio=0",
                        "learning_rate=0.01",
                        "threads=1",
                        "publish.dtype=fp32"};
    if (kind == "finetune") command.settings.push_back("lora.rank=2");
    command.settings.insert(command.settings.end(), more.begin(), more.end());
    command.run_folder = run_;
    if (!name.empty()) command.repository = root_;
    command.name = name;
    char* told = nullptr;
    size_t size = 0;
    std::FILE* progress = open_memstream(&told, &size);
    const std::string error = ErrorOf([&] { RunTraining(command, progress); });
    std::fclose(progress);
    const std::string text = told + error;
    std::free(told);
    return text;
  }
  bool SameTensors(const std::string& a, const std::string& b) const {
    const LanguageCheckpoint one = OpenLanguage(root_ / a), other = OpenLanguage(root_ / b);
    for (const auto& [name, info] : one.tensors.tensors()) {
      if (!at::equal(one.tensors.Get(name), other.tensors.Get(name))) return false;
    }
    return true;
  }

  const TempFolder scratch_;
  const fs::path root_ = scratch_.path() / "models", run_ = scratch_.path() / "run";
  fs::path data_;
};

// Its decoder rests in memory, and in no state.
TEST_F(ResumedStartTest, AdaptersArePublishedOverTheModelThatTheyWereTrainedOn) {
  Run("finetune", "chat");
  ASSERT_TRUE(fs::exists(root_ / "chat/2"));
  EXPECT_FALSE(SameTensors("chat/1", "chat/2"));
  const std::string newer = "chat/1, as when this run began; ";
  EXPECT_THAT(Run("finetune", "chat"), HasSubstr(newer));
  EXPECT_FALSE(fs::exists(root_ / "chat/3")) << "a repeated command publishes nothing";
  EXPECT_THAT(Run("finetune", "other"), HasSubstr(newer));
  EXPECT_TRUE(SameTensors("other/1", "chat/2"));
  const std::string named = "model=" + (root_ / "chat/1").string();
  EXPECT_THAT(Run("finetune", "third", {named}), Not(HasSubstr("as when")));
  EXPECT_TRUE(SameTensors("third/1", "chat/2"));

  const std::string refusal = "the model was another when this run began: name it (" + named + ")";
  EXPECT_THAT(Run("finetune", "fourth", {"model=" + (root_ / "chat/2").string()}),
              HasSubstr(refusal));
  fs::remove_all(root_ / "chat/1");
  EXPECT_THAT(Run("finetune", "fourth"), HasSubstr(refusal));
  EXPECT_FALSE(fs::exists(root_ / "fourth"));
}

TEST_F(ResumedStartTest, AProjectorGoesOnWithItsTower) {
  Run("align", "");
  TowerCheckpoint other = OpenTower(root_ / "eye");
  const std::string name = other.tensors.tensors().begin()->first;
  ReplaceTensors(other.tensors, {{name, other.tensors.Get(name) + 1}});
  other.digest = HashBytes("another tower");
  other.self_test.reset();
  PublishTower(other, root_, "eye");
  EXPECT_THAT(Run("align", ""),
              AllOf(HasSubstr("tower: " + (root_ / "eye/1").string() + ", as when this run began"),
                    HasSubstr("goes on from step 2 of 2")));
  fs::remove_all(root_ / "eye/1");
  EXPECT_THAT(Run("align", ""), HasSubstr("the tower was another when this run began: name it "
                                          "(tower=" +
                                          (root_ / "eye/1").string() + ")"));
}

TEST_F(ResumedStartTest, ARunThatHasLearntNothingBeginsWithWhatThereIs) {
  Run("align", "");
  for (const auto& entry : fs::directory_iterator(run_)) {
    if (entry.path().filename().string().starts_with("state-")) fs::remove(entry);
  }
  PublishLanguage(OpenLanguage(root_ / "chat/1"), root_, "chat");
  fs::remove_all(root_ / "chat/1");
  EXPECT_THAT(Run("align", ""), Not(HasSubstr("when this run began")));
}

TEST_F(ResumedStartTest, ARunOfAnEarlierProgramNotesItLate) {
  Run("align", "");
  fs::remove(run_ / kRunStartFile);
  EXPECT_THAT(Run("align", "", {"model=" + (root_ / "chat/1").string()}), HasSubstr("/model: was"));
  EXPECT_THAT(Run("align", ""), HasSubstr("did not note which model it began with: " +
                                          (root_ / "chat/1").string() + " is taken for it"));
  EXPECT_THAT(Run("align", ""), Not(HasSubstr("is taken for it")));
}

TEST_F(ResumedStartTest, AFolderOfOthersIsTheSameByNameOrByContent) {
  const auto part = [](const char* folder, const char* content) {
    return RunStart::Part{
        .folder = folder, .digest = HashBytes(content), .exact = false, .newer = {}};
  };
  fs::create_directories(run_);
  const auto keep = [&](const RunStart::Part& model, bool resumes) {
    char* told = nullptr;
    size_t size = 0;
    std::FILE* progress = open_memstream(&told, &size);
    const std::string error = ErrorOf([&] {
      KeepRunStart(run_, {model, part("", "tower")}, resumes, progress);
    });
    std::fclose(progress);
    const std::string text = told + error;
    std::free(told);
    return text;
  };
  EXPECT_EQ(keep(part("/vicuna", "weights"), false), "");
  EXPECT_EQ(keep(part("/vicuna", "weights"), true), "");
  EXPECT_EQ(keep(part("/moved", "weights"), true), "");
  EXPECT_THAT(keep(part("/vicuna/", "weights and a README"), true),
              HasSubstr("model: /vicuna/ has changed since this run began"));
  EXPECT_THAT(keep(part("/llama", "other weights"), true),
              HasSubstr("the model was another when this run began: name it (model=/vicuna)"));
}

}  // namespace
}  // namespace llava
