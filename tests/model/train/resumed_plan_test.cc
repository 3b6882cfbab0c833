// A run goes on in the order that it began with, whatever became of its data.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/model/train/instruction_world.h"
#include "tests/support/error_of.h"

namespace llava {
namespace {

using testing::HasSubstr;
using Settings = std::vector<std::string>;

class ResumedPlanTest : public testing::Test {
 protected:
  ResumedPlanTest() { std::filesystem::create_directory(folder_); }

  std::unique_ptr<TrainingTask> Begin(const Settings& settings, bool resumes) {
    auto task = world_.Make(InstructionStage::kAlign, settings);
    char* told = nullptr;
    size_t size = 0;
    std::FILE* progress = open_memstream(&told, &size);
    try {
      task->Begin(folder_, resumes, progress);
    } catch (...) {
      std::fclose(progress);
      std::free(told);
      throw;
    }
    std::fclose(progress);
    told_ = told;
    std::free(told);
    return task;
  }
  static std::vector<std::string> Origins(TrainingTask& task) {
    std::vector<std::string> origins;
    for (int64_t step = 0; step < task.total_steps(); ++step) {
      origins.push_back(task.Forward(step, 0).origin);
    }
    return origins;
  }

  InstructionWorld world_;
  const std::filesystem::path folder_ = world_.folder() / "run";
  std::string told_;
};

TEST_F(ResumedPlanTest, APictureThatVanishedChangesNoOtherStep) {
  for (const char* order : {"order=shuffled", "order=by_length", "packing=picture"}) {
    Settings settings = {order, "batch_size=1", "epochs=2", "skip_bad=true"};
    const auto picture = world_.folder() / "images/1.png", away = world_.folder() / "away.png";
    const auto before = Origins(*Begin(settings, false));
    std::filesystem::rename(picture, away);
    const auto task = Begin(settings, true);
    EXPECT_THAT(told_, HasSubstr("1 records of it cannot be used any more, 0 that now could be"));
    const auto after = Origins(*task);
    ASSERT_EQ(after.size(), before.size()) << order;
    int changed = 0;
    for (size_t step = 0; step < before.size(); ++step) {
      const bool removed = before[step].ends_with("records 3");
      changed += removed;
      EXPECT_EQ(before[step] == after[step], !removed) << order << " step " << step;
    }
    EXPECT_EQ(changed, 2) << order;
    // A run that has no state yet begins with what there is.
    EXPECT_LT(Begin(settings, false)->total_steps(), static_cast<int64_t>(before.size()));
    EXPECT_EQ(told_, "");
    // And leaves out to its end what it began without.
    std::filesystem::rename(away, picture);
    for (const std::string& origin : Origins(*Begin(settings, true))) {
      EXPECT_FALSE(origin.ends_with("records 3")) << order;
    }
    EXPECT_THAT(told_, HasSubstr("0 records of it cannot be used any more, 1 that now could be"));
  }
}

TEST_F(ResumedPlanTest, OtherDataAreRefused) {
  Begin({}, false);
  auto records = world_.records();
  records[4] = RecordJson("e", "", {"Can a fish fly far?", "No."});
  world_.Write("data.json", ArrayJson(records));
  EXPECT_THAT(ErrorOf([&] { Begin({}, true); }),
              HasSubstr("data.json record 4 was another when this run began; give the same data"));
  records.pop_back();
  world_.Write("data.json", ArrayJson(records));
  EXPECT_THAT(ErrorOf([&] { Begin({}, true); }), HasSubstr("has 7 records, it had 8 when this"));
}

TEST_F(ResumedPlanTest, ARunFromBeforeThereWasAPlanFileGoesOn) {
  const auto first = Origins(*Begin({"batch_size=1"}, true));
  EXPECT_EQ(Origins(*Begin({"batch_size=1"}, true)), first);
  world_.Write("run/plan.safetensors", "torn");
  EXPECT_THAT(ErrorOf([&] { Begin({}, true); }), HasSubstr("plan.safetensors"));
}

}  // namespace
}  // namespace llava
