#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "model/checkpoint/durable_file.h"
#include "tests/support/full_disk.h"

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

TEST(StagedFileTest, TakesPiecesOfAnySize) {
  const fs::path folder = Fresh();
  std::string expected;
  for (const auto sync : {StagedFile::Sync::kNow, StagedFile::Sync::kLater}) {
    StagedFile file(folder / "a");
    expected.clear();
    for (const size_t size : {1, 65'535, 1, 65'536, 65'537, 0, 200'000, 3}) {
      const std::string piece(size, static_cast<char>('a' + size % 26));
      file.Write(piece);
      expected += piece;
    }
    file.Commit(sync);
    EXPECT_TRUE(Read(folder / "a") == expected);
  }
}

TEST(StagedFileTest, ReplacesWhatAKilledWriterLeft) {
  const fs::path folder = Fresh();
  std::ofstream(folder / "a.part") << "longer than what follows";
  StagedFile file(folder / "a");
  file.Write("short");
  file.Commit();
  EXPECT_EQ(Read(folder / "a"), "short");
  EXPECT_FALSE(fs::exists(folder / "a.part"));
}

TEST(StagedFileTest, NamesThePathAndTheReason) {
  try {
    StagedFile file(Fresh() / "none" / "a");
    FAIL();
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("none/a.part: cannot create: No such file"), std::string::npos) << what;
  }
}

TEST(StagedFileTest, AFullDiskIsAnError) {
  const fs::path folder = Fresh();
  const FullDisk full(50'000);
  const auto write = [&] {
    StagedFile file(folder / "a");
    file.Write(std::string(100'000, 'x'));
    file.Commit();
  };
  EXPECT_THROW(write(), std::runtime_error);
  EXPECT_TRUE(fs::is_empty(folder));
}

}  // namespace
}  // namespace llava
