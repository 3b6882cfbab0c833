#pragma once

// SQLite with absl::Status and values bound by position.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace llava {

// Bytes that are no text.
struct SqlBlob {
  explicit SqlBlob(std::string_view view) : bytes(view) {}
  std::string_view bytes;
};

// What is bound to a `?`; views must live until the call returns. nullptr = NULL.
using SqlValue = std::variant<std::nullptr_t, int64_t, std::string_view, SqlBlob>;

// One row of a result, valid inside the row callback.
class SqlRow {
 public:
  explicit SqlRow(sqlite3_stmt* statement) : statement_(statement) {}
  int64_t Int(int column) const;
  std::string Text(int column) const;  // also blobs; empty for NULL
  bool IsNull(int column) const;

 private:
  sqlite3_stmt* statement_;
};

// One connection. One thread. All errors are INTERNAL (DiskFull when the disk is)
// and carry SQLite's message.
class SqlDatabase {
 public:
  // Opens or makes the file: write-ahead log, synchronous=FULL, foreign keys on. A commit costs one
  // write and one sync of the log; nobody brings the log into the tables but CheckpointLog. Nothing
  // of a transaction is in the log before its commit, and what is deleted is overwritten.
  static absl::StatusOr<std::unique_ptr<SqlDatabase>> Open(const std::string& path);
  // Opens a file that is there and changes nothing.
  static absl::StatusOr<std::unique_ptr<SqlDatabase>> OpenToRead(const std::string& path);
  ~SqlDatabase();
  SqlDatabase(const SqlDatabase&) = delete;
  SqlDatabase& operator=(const SqlDatabase&) = delete;

  // One statement, prepared once and kept. `row` is called for each result row.
  absl::Status Query(std::string_view sql, std::initializer_list<SqlValue> values = {},
                     const std::function<void(const SqlRow&)>& row = {});
  // Several statements without values or results.
  absl::Status Script(const std::string& sql);
  // Copies all of it to `target`, as it was at one moment, while other connections write.
  absl::Status CopyTo(SqlDatabase& target);
  // Brings the log into the tables, as far as readers and writers on other connections let it;
  // they are not held up. When all of it is there, the next commit begins the log's file anew.
  absl::Status CheckpointLog();
  // Pages in the log after the last commit on this connection.
  int log_pages() const { return log_pages_; }
  // Rows changed by the last Query.
  int64_t changes() const;
  // Rows changed since Open: tells whether a transaction wrote.
  int64_t total_changes() const;
  // False after an error that made SQLite take all of it back.
  bool in_transaction() const;

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };

  explicit SqlDatabase(sqlite3* handle) : handle_(handle) {}
  static absl::StatusOr<std::unique_ptr<SqlDatabase>> OpenAs(const std::string& path, int flags);
  absl::Status Error(std::string_view what) const;

  sqlite3* const handle_;
  std::unordered_map<std::string, sqlite3_stmt*, Hash, std::equal_to<>> statements_;
  int log_pages_ = 0;
};

}  // namespace llava
