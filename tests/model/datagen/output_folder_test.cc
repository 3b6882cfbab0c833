#include "model/datagen/output_folder.h"
#include "tests/support/temp_folder.h"

#include <gtest/gtest.h>

#include <fstream>

namespace llava {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

class OutputFolderTest : public testing::Test {
 protected:
  const TempFolder temp_;
  const fs::path folder_ = temp_.path() / "dataset";  // not made yet
  const Json settings_ = {{"seed", 1}};
};

TEST_F(OutputFolderTest, IsMadeAndFinished) {
  OutputFolder folder(folder_, settings_);
  EXPECT_FALSE(folder.resumed());
  EXPECT_TRUE(fs::is_directory(folder.images()));
  folder.Finish({{"images", 0}});
  EXPECT_FALSE(fs::exists(folder_ / ".unfinished.json"));
  std::ifstream file(folder_ / "dataset.json");
  EXPECT_EQ(Json::parse(file), Json({{"settings", settings_}, {"contents", {{"images", 0}}}}));
}

TEST_F(OutputFolderTest, ResumesOnlyTheSame) {
  { OutputFolder(folder_, settings_); }
  EXPECT_TRUE(OutputFolder(folder_, settings_).resumed());
  EXPECT_THROW(OutputFolder(folder_, {{"seed", 2}}), FolderRefused);
  EXPECT_FALSE(OutputFolder(folder_, {{"seed", 2}}, /*overwrite=*/true).resumed());
}

TEST_F(OutputFolderTest, OneThatWasKilledAtOnceIsBegunAnew) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / ".unfinished.json.part") << "{\"se";
  EXPECT_FALSE(OutputFolder(folder_, settings_).resumed());
  fs::remove_all(folder_);
  fs::create_directories(folder_ / "images");
  EXPECT_FALSE(OutputFolder(folder_, settings_, /*overwrite=*/true).resumed());
  EXPECT_TRUE(OutputFolder(folder_, settings_).resumed());
}

TEST_F(OutputFolderTest, KeepsWhatIsFinished) {
  OutputFolder(folder_, settings_).Finish({});
  EXPECT_THROW(OutputFolder(folder_, settings_), FolderRefused);
  std::ofstream(folder_ / "captions.json") << "{}";
  std::ofstream(folder_ / "images/000000.png") << "x";
  std::ofstream(folder_ / "notes.txt") << "mine";
  EXPECT_FALSE(OutputFolder(folder_, settings_, /*overwrite=*/true).resumed());
  EXPECT_FALSE(fs::exists(folder_ / "captions.json"));
  EXPECT_FALSE(fs::exists(folder_ / "dataset.json"));
  EXPECT_TRUE(fs::is_empty(folder_ / "images"));
  EXPECT_TRUE(fs::exists(folder_ / "notes.txt"));  // not ours to remove
}

TEST_F(OutputFolderTest, NeverReplacesStrangeFolders) {
  fs::create_directories(folder_ / "images");
  std::ofstream(folder_ / "images/holiday.jpg") << "x";
  for (const bool overwrite : {false, true}) {
    EXPECT_THROW(OutputFolder(folder_, settings_, overwrite), FolderRefused);
  }
  EXPECT_TRUE(fs::exists(folder_ / "images/holiday.jpg"));
  fs::remove_all(folder_);
  std::ofstream(folder_.string()) << "a file";
  EXPECT_THROW(OutputFolder(folder_, settings_, /*overwrite=*/true), FolderRefused);
}

TEST_F(OutputFolderTest, ABrokenMarkerIsNotResumed) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / ".unfinished.json") << "{\"seed\": ";
  EXPECT_THROW(OutputFolder(folder_, settings_), FolderRefused);
  EXPECT_FALSE(OutputFolder(folder_, settings_, /*overwrite=*/true).resumed());
}

}  // namespace
}  // namespace llava
