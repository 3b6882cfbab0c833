#include "server/gateway/sqlite_log_file.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/types.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/gateway/sqlite.h"
#include "server/runtime/error_reason.h"
#include "tests/server/gateway/no_space.h"
#include "tests/support/full_disk.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// Calls of write() and its kin by this thread; nothing where the kernel does not count them.
std::optional<int64_t> WriteCalls() {
  std::ifstream io("/proc/thread-self/io");
  for (std::string name; io >> name;) {
    int64_t value = 0;
    io >> value;
    if (name == "syscw:") return value;
  }
  return std::nullopt;
}

class SqliteLogFileTest : public testing::Test {
 protected:
  void SetUp() override {
    auto database = SqlDatabase::Open(path_);
    ASSERT_TRUE(database.ok()) << database.status();
    database_ = *std::move(database);
    Run("CREATE TABLE rows (id INTEGER PRIMARY KEY, bytes BLOB)");
  }

  void Run(const std::string& sql) {
    const auto status = database_->Script(sql);
    ASSERT_TRUE(status.ok()) << status;
  }
  // A page for each.
  absl::Status Insert(int first, int count) {
    return database_->Script(absl::StrCat(
        "WITH RECURSIVE n(i) AS (SELECT ", first, " UNION ALL SELECT i + 1 FROM n WHERE i < ",
        first + count - 1, ") INSERT INTO rows SELECT i, randomblob(3500) FROM n"));
  }
  int64_t Count() {
    int64_t count = -1;
    EXPECT_TRUE(
        database_
            ->Query("SELECT count(*) FROM rows", {}, [&](const SqlRow& row) { count = row.Int(0); })
            .ok());
    return count;
  }
  // Rows in the files as they are now, in a copy that a program without our way to files reads;
  // -1: they are damaged.
  int64_t CountAfterACrash() {
    const std::string copy = folder_.At("copy");
    fs::remove_all(copy);
    fs::create_directory(copy);
    for (const char* end : {"", "-wal"}) fs::copy_file(path_ + end, copy + "/rows.db" + end);
    sqlite3* usual = nullptr;
    EXPECT_EQ(sqlite3_open((copy + "/rows.db").c_str(), &usual), SQLITE_OK);
    int64_t count = -1;
    sqlite3_exec(
        usual, "SELECT count(*), (SELECT * FROM pragma_integrity_check(1)) FROM rows",
        [](void* result, int, char** columns, char**) {
          if (std::string(columns[1]) == "ok") {
            *static_cast<int64_t*>(result) = std::stoll(columns[0]);
          }
          return 0;
        },
        &count, nullptr);
    sqlite3_close(usual);
    return count;
  }

  TempFolder folder_;
  const std::string path_ = folder_.At("rows.db");
  std::unique_ptr<SqlDatabase> database_;
};

TEST_F(SqliteLogFileTest, ACommitIsWrittenInOnePiece) {
  ASSERT_TRUE(Insert(0, 10).ok());
  const auto before = WriteCalls();
  if (!before) GTEST_SKIP() << "this kernel does not count calls of write()";
  ASSERT_TRUE(Insert(10, 10).ok());
  EXPECT_LE(*WriteCalls() - *before, 2) << "more than 10 pages, each with its header";
}

TEST_F(SqliteLogFileTest, WhatIsCommittedIsInTheFile) {
  for (int i = 1; i <= 3; ++i) {
    ASSERT_TRUE(Insert(100 * i, 100).ok());  // more than is gathered
    EXPECT_EQ(CountAfterACrash(), 100 * i);
  }
}

TEST_F(SqliteLogFileTest, PagesThatDoNotFitIntoTheCacheAreReadBack) {
  Run("PRAGMA cache_spill = ON; PRAGMA cache_size = 10; BEGIN");
  ASSERT_TRUE(Insert(0, 500).ok());
  Run("UPDATE rows SET bytes = zeroblob(3500) WHERE id % 3 = 0");
  EXPECT_EQ(CountAfterACrash(), 0);
  Run("ROLLBACK");
  EXPECT_EQ(Count(), 0);
  Run("BEGIN");
  ASSERT_TRUE(Insert(0, 400).ok());
  Run("UPDATE rows SET bytes = zeroblob(3500) WHERE id % 3 = 0; COMMIT");
  EXPECT_EQ(Count(), 400);
  EXPECT_EQ(CountAfterACrash(), 400);
}

TEST_F(SqliteLogFileTest, TheLogBeginsAnewAfterACheckpoint) {
  for (int i = 1; i <= 5; ++i) {
    ASSERT_TRUE(Insert(50 * i, 50).ok());
    ASSERT_TRUE(database_->CheckpointLog().ok());
    EXPECT_EQ(CountAfterACrash(), 50 * i);
  }
  EXPECT_LT(fs::file_size(path_ + "-wal"), 100U * 4096);
}

TEST_F(SqliteLogFileTest, ALogThatGrewBeyondItsLimitIsCut) {
  auto reader = SqlDatabase::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  ASSERT_TRUE((*reader)->Script("BEGIN; SELECT count(*) FROM rows").ok());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(Insert(1000 * i, 1000).ok());
  ASSERT_TRUE(database_->CheckpointLog().ok());  // as far as the reader lets it
  EXPECT_GT(fs::file_size(path_ + "-wal"), 36U << 20);
  ASSERT_TRUE((*reader)->Script("COMMIT").ok());
  ASSERT_TRUE(database_->CheckpointLog().ok());
  ASSERT_TRUE(Insert(10'000, 1).ok());
  EXPECT_LE(fs::file_size(path_ + "-wal"), 32U << 20);
  EXPECT_EQ(Count(), 10'001);
  EXPECT_EQ(CountAfterACrash(), 10'001);
}

TEST_F(SqliteLogFileTest, ACommitThatCannotBeWrittenIsTakenBack) {
  ASSERT_TRUE(Insert(0, 10).ok());
  absl::Status written;
  {
    const FullDisk full(fs::file_size(path_ + "-wal") + 8192);
    written = Insert(10, 10);
  }
  EXPECT_FALSE(written.ok());
  EXPECT_EQ(Count(), 10);
  EXPECT_EQ(CountAfterACrash(), 10);
  ASSERT_TRUE(Insert(10, 10).ok());
  EXPECT_EQ(CountAfterACrash(), 20);
}

TEST_F(SqliteLogFileTest, AFullDiskIsCalledSo) {
  ASSERT_TRUE(Insert(0, 10).ok());
  {
    const NoSpace full;
    EXPECT_TRUE(HasReason(Insert(10, 10), kReasonDiskFull));
  }
  EXPECT_EQ(Count(), 10);
  EXPECT_EQ(CountAfterACrash(), 10);
}

// Of a transaction with a statement that fails halfway SQLite may keep the rest.
TEST_F(SqliteLogFileTest, ATransactionOfWhichAPartCouldNotBeWrittenIsTakenBack) {
  ASSERT_TRUE(Insert(0, 10).ok());
  Run("PRAGMA cache_spill = ON; PRAGMA cache_size = 10; BEGIN");
  ASSERT_TRUE(Insert(10, 20).ok());
  {
    const NoSpace full;
    EXPECT_FALSE(database_->Script("INSERT INTO rows SELECT id + 100, bytes FROM rows").ok());
  }
  EXPECT_FALSE(database_->in_transaction());
  EXPECT_FALSE(database_->Script("COMMIT").ok());
  EXPECT_EQ(Count(), 10);
  EXPECT_EQ(CountAfterACrash(), 10);
}

// What is taken back might come to the file later, over what others have committed there.
TEST_F(SqliteLogFileTest, NothingIsInTheLogBeforeItsCommit) {
  ASSERT_TRUE(Insert(0, 10).ok());
  const auto before = fs::file_size(path_ + "-wal");
  Run("BEGIN");
  ASSERT_TRUE(Insert(10, 1000).ok());  // more than the cache is meant to hold
  EXPECT_EQ(fs::file_size(path_ + "-wal"), before);
  Run("ROLLBACK");
  EXPECT_EQ(Count(), 10);
  EXPECT_EQ(fs::file_size(path_ + "-wal"), before);
}

TEST_F(SqliteLogFileTest, WhatIsDeletedIsOverwritten) {
  const std::string secret = "a secret that was told";
  const auto in_tables = [&] {
    EXPECT_TRUE(database_->CheckpointLog().ok());
    std::ifstream file(path_, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    return bytes.find(secret) != std::string::npos;
  };
  Run("CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT);"
      "INSERT INTO texts VALUES (1, '" +
      secret + "'), (2, '" + secret + std::string(9000, '.') + "')");
  EXPECT_TRUE(in_tables());
  Run("DELETE FROM texts");
  EXPECT_FALSE(in_tables());
}

}  // namespace
}  // namespace llava
