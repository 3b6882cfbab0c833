#include "model/datagen/science_dataset.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>

#include "model/data/scenes/render.h"
#include "model/datagen/scene_problems.h"
#include "model/image/decode.h"
#include "model/progress/stop_request.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class ScienceDatasetTest : public testing::Test {
 protected:
  ScienceDatasetTest() {
    options_.out = folder_.path() / "a";
    options_.train = 12;
    options_.val = 0;
    options_.test = 6;
  }
  ~ScienceDatasetTest() override { std::fclose(log_); }

  const TempFolder folder_;
  ScienceDatasetOptions options_;
  std::FILE* log_ = std::tmpfile();
};

TEST_F(ScienceDatasetTest, IsLaidOutAsScienceQa) {
  ASSERT_TRUE(WriteScienceDataset(options_, log_));
  const json problems = json::parse(ReadBytes(options_.out / "problems.json"));
  const json splits = json::parse(ReadBytes(options_.out / "pid_splits.json"));
  EXPECT_EQ(splits["train"].size(), 12);
  EXPECT_EQ(splits["val"].size(), 0);
  EXPECT_EQ(splits["test"].size(), 6);
  EXPECT_EQ(problems.size(), 18);
  std::set<std::string> ids;
  for (const auto& [split, list] : splits.items()) {
    for (const auto& one : list) {
      const auto id = one.get<std::string>();
      EXPECT_TRUE(ids.insert(id).second);
      const json& problem = problems.at(id);
      EXPECT_EQ(problem["split"], split);
      const fs::path picture = options_.out / "images" / split / id / "image.png";
      EXPECT_EQ(fs::exists(picture), problem["image"].is_string()) << picture;
    }
  }
  // The picture is that of the problem.
  const SceneProblem first = MakeSceneProblem(options_.scenes, options_.seed, 12);
  ASSERT_TRUE(first.scene);
  const std::string png = ReadBytes(options_.out / "images" / "test" / "13" / "image.png");
  EXPECT_EQ(DecodeImage({reinterpret_cast<const uint8_t*>(png.data()), png.size()}).rgb,
            SceneRenderer().Render(*first.scene).rgb);
  EXPECT_TRUE(fs::exists(options_.out / "dataset.json"));
  EXPECT_THROW(WriteScienceDataset(options_, log_), FolderRefused);
  options_.overwrite = true;
  options_.test = 0;
  ASSERT_TRUE(WriteScienceDataset(options_, log_));
  EXPECT_FALSE(fs::exists(options_.out / "images" / "test"));
}

TEST_F(ScienceDatasetTest, CanBeInterruptedAndMadeAnew) {
  ASSERT_TRUE(WriteScienceDataset(options_, log_));
  const std::string whole = ReadBytes(options_.out / "problems.json");
  options_.out = folder_.path() / "b";
  {
    const StopRequest stop;
    raise(SIGTERM);
    EXPECT_FALSE(WriteScienceDataset(options_, log_));
  }
  EXPECT_FALSE(fs::exists(options_.out / "problems.json"));
  ASSERT_TRUE(WriteScienceDataset(options_, log_));
  EXPECT_EQ(ReadBytes(options_.out / "problems.json"), whole);
}

TEST_F(ScienceDatasetTest, NeedsProblems) {
  options_.train = options_.test = 0;
  EXPECT_THROW(WriteScienceDataset(options_, log_), std::invalid_argument);
  EXPECT_FALSE(fs::exists(options_.out));
}

}  // namespace
}  // namespace llava
