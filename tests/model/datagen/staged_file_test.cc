#include "model/datagen/staged_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace llava {
namespace {

namespace fs = std::filesystem;

fs::path Fresh() {
  const fs::path folder =
      fs::path(testing::TempDir()) / ("staged_file_test_" + std::to_string(getpid()));
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

std::string Read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(StagedFileTest, AppearsWholeOrNotAtAll) {
  const fs::path folder = Fresh();
  {
    StagedFile file(folder / "a");
    file.Write("one");
    EXPECT_FALSE(fs::exists(folder / "a"));
    file.Write(" two");
    file.Commit();
    EXPECT_EQ(Read(folder / "a"), "one two");
  }
  {
    StagedFile file(folder / "a");
    file.Write("lost");
  }
  EXPECT_EQ(Read(folder / "a"), "one two");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
}

TEST(StagedFileTest, NamesThePathAndTheReason) {
  try {
    StagedFile file(Fresh() / "none" / "a");
    FAIL();
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("none/a cannot be made: No such file"), std::string::npos) << what;
  }
}

TEST(StagedFileTest, AFullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const fs::path folder = Fresh();
  fs::create_symlink("/dev/full", folder / "a.part");
  const auto write = [&] {
    StagedFile file(folder / "a");
    file.Write(std::string(100000, 'x'));
    file.Commit();
  };
  EXPECT_THROW(write(), std::runtime_error);
  EXPECT_FALSE(fs::exists(folder / "a"));
  EXPECT_FALSE(fs::is_symlink(folder / "a.part"));
}

}  // namespace
}  // namespace llava
