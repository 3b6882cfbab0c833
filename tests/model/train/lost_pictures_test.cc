// --skip-bad leaves out bad records, not those whose disk is not there.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/model/train/instruction_world.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

// No more files can be opened while it lives.
class NoFiles {
 public:
  NoFiles() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit none = {0, before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
  }
  ~NoFiles() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_ = {};
};

class LostPicturesTest : public testing::Test {
 protected:
  LostPicturesTest() { fs::create_directory(run_); }

  std::unique_ptr<TrainingTask> Make() const {
    return world_.Make(InstructionStage::kAlign,
                       {"skip_bad=true", "batch_size=1", "order=as_data"});
  }
  std::unique_ptr<TrainingTask> Begin(bool resumes) const {
    auto task = Make();
    task->Begin(run_, resumes, nullptr);
    return task;
  }
  // Of the first step that fails.
  static std::string Fault(TrainingTask& task) {
    return ErrorOf<std::runtime_error>([&] {
      for (int64_t step = 0; step < task.total_steps(); ++step) task.Forward(step, 0);
    });
  }
  // `count` pictures of their own with a question each, and one about text behind each.
  void WriteManyRecords(int count, const std::string& content) const {
    std::vector<std::string> records;
    for (int i = 0; i < count; ++i) {
      records.push_back(RecordJson("p", Picture(i), {"<image>\nWhat?", "A cat."}));
      records.push_back(RecordJson("t", "", {"Can a boat fly?", "No."}));
      world_.Write("images/" + Picture(i), content);
    }
    world_.Write("data.json", ArrayJson(records));
  }
  static std::string Picture(int number) { return "many" + std::to_string(number) + ".png"; }

  InstructionWorld world_;
  const fs::path run_ = world_.folder() / "run", images_ = world_.folder() / "images";
  const std::string good_ = ReadBytes(images_ / "0.png");
};

TEST_F(LostPicturesTest, WithoutTheirFolderNothingBeginsOrGoesOn) {
  Begin(false);
  fs::rename(images_, world_.folder() / "away");
  const std::string lost = images_.string() + ": the folder of the pictures (images=...) is ";
  EXPECT_THAT(ErrorOf<std::runtime_error>([&] { Begin(true); }), HasSubstr(lost + "not there"));
  fs::create_directory(images_);  // where it was mounted
  EXPECT_THAT(ErrorOf<std::runtime_error>([&] { Begin(true); }), HasSubstr(lost + "empty"));
  fs::remove(images_);
  fs::rename(world_.folder() / "away", images_);
  EXPECT_EQ(Fault(*Begin(true)), "");
}

TEST_F(LostPicturesTest, AFolderLostDuringTheRunEndsIt) {
  const auto task = Begin(false);
  fs::rename(images_, world_.folder() / "away");
  EXPECT_THAT(Fault(*task), HasSubstr("the folder of the pictures (images=...) is not there"));
}

TEST_F(LostPicturesTest, APictureThatCannotBeOpenedForWantOfFilesIsNotLeftOut) {
  const auto task = Begin(false);
  std::string fault;
  {
    const NoFiles none;
    fault = Fault(*task);
  }
  EXPECT_THAT(fault, AllOf(HasSubstr("0.png"), HasSubstr("Too many open files")));
}

// The folder is there, but what was mounted in it is not.
TEST_F(LostPicturesTest, ManyThatVanishEndTheRun) {
  WriteManyRecords(80, good_);
  const auto task = Begin(false);
  for (int i = 0; i < 80; ++i) fs::remove(images_ / Picture(i));
  EXPECT_THAT(Fault(*task), AllOf(HasSubstr("no picture " + images_.string()),
                                  HasSubstr("64 others that were there when the run started")));
  EXPECT_EQ(Fault(*Make()), "") << "a new run leaves out what it was told to";
  // More than a hundred, and more than a twentieth.
  WriteManyRecords(101, good_);
  Begin(false);
  for (int i = 0; i < 100; ++i) fs::remove(images_ / Picture(i));
  EXPECT_EQ(Fault(*Begin(true)), "");
  fs::remove(images_ / Picture(100));
  EXPECT_THAT(ErrorOf<std::runtime_error>([&] { Begin(true); }),
              HasSubstr("101 of the 202 records that this run began with cannot be used any more, "
                        "the first: " +
                        (world_.folder() / "data.json").string() + " record 0: are all pictures"));
}

TEST_F(LostPicturesTest, ManyBrokenOnesInSuccessionEndTheRun) {
  WriteManyRecords(80, good_.substr(0, good_.size() / 2));
  EXPECT_EQ(Fault(*Make()), "") << "there is text between them";
  std::vector<std::string> records;
  for (int i = 0; i < 80; ++i) {
    records.push_back(RecordJson("p", Picture(i), {"<image>\nWhat?", "A cat."}));
  }
  records.push_back(world_.records()[0]);
  world_.Write("data.json", ArrayJson(records));
  EXPECT_THAT(Fault(*Make()), HasSubstr("more than 64 rows in succession turned out bad, the "
                                        "last: " +
                                        (world_.folder() / "data.json").string() + " record 64"));
}

}  // namespace
}  // namespace llava
