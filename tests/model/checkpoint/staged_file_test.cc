#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <string>

#include "model/checkpoint/durable_file.h"
#include "tests/support/error_of.h"
#include "tests/support/full_disk.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

TEST(StagedFileTest, AppearsWholeOrNotAtAll) {
  const TempFolder folder;
  {
    StagedFile file(folder.At("a"));
    file.Write("one");
    EXPECT_FALSE(fs::exists(folder.At("a")));
    file.Write(" two");
    file.Commit();
    EXPECT_EQ(folder.Read("a"), "one two");
  }
  {
    StagedFile file(folder.At("a"));
    file.Write("lost");
  }
  EXPECT_EQ(folder.Read("a"), "one two");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(StagedFileTest, TakesPiecesOfAnySize) {
  const TempFolder folder;
  std::string expected;
  for (const auto sync : {StagedFile::Sync::kNow, StagedFile::Sync::kLater}) {
    StagedFile file(folder.At("a"));
    expected.clear();
    for (const size_t size : {1, 65'535, 1, 65'536, 65'537, 0, 200'000, 3}) {
      const std::string piece(size, static_cast<char>('a' + size % 26));
      file.Write(piece);
      expected += piece;
    }
    file.Commit(sync);
    EXPECT_TRUE(folder.Read("a") == expected);
  }
}

TEST(StagedFileTest, ReplacesWhatAKilledWriterLeft) {
  const TempFolder folder;
  folder.Write("a.part", "longer than what follows");
  StagedFile file(folder.At("a"));
  file.Write("short");
  file.Commit();
  EXPECT_EQ(folder.Read("a"), "short");
  EXPECT_FALSE(fs::exists(folder.At("a.part")));
}

TEST(StagedFileTest, NamesThePathAndTheReason) {
  const TempFolder folder;
  EXPECT_THAT(ErrorOf<std::runtime_error>([&] { StagedFile file(folder.At("none/a")); }),
              testing::HasSubstr("none/a.part: cannot create: No such file"));
}

TEST(StagedFileTest, AFullDiskIsAnError) {
  const TempFolder folder;
  const FullDisk full(50'000);
  const auto write = [&] {
    StagedFile file(folder.At("a"));
    file.Write(std::string(100'000, 'x'));
    file.Commit();
  };
  EXPECT_THROW(write(), std::runtime_error);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

}  // namespace
}  // namespace llava
