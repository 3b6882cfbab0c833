#pragma once

// SQLite with absl::Status and values bound by position.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

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

// One connection. One thread. All errors are INTERNAL (RESOURCE_EXHAUSTED when the disk is full)
// and carry SQLite's message.
class SqlDatabase {
 public:
  // Opens or makes the file: write-ahead log, synchronous=FULL, foreign keys on.
  static absl::StatusOr<std::unique_ptr<SqlDatabase>> Open(const std::string& path);
  ~SqlDatabase();
  SqlDatabase(const SqlDatabase&) = delete;
  SqlDatabase& operator=(const SqlDatabase&) = delete;

  // One statement, prepared once and kept. `row` is called for each result row.
  absl::Status Query(const std::string& sql, std::initializer_list<SqlValue> values = {},
                     const std::function<void(const SqlRow&)>& row = {});
  // Several statements without values or results.
  absl::Status Script(const std::string& sql);
  // Copies all of it to `target`, as it was at one moment, while other connections write.
  absl::Status CopyTo(SqlDatabase& target);
  // Rows changed by the last Query.
  int64_t changes() const;
  // Rows changed since Open: tells whether a transaction wrote.
  int64_t total_changes() const;

 private:
  explicit SqlDatabase(sqlite3* handle) : handle_(handle) {}
  absl::Status Error(absl::string_view what) const;

  sqlite3* const handle_;
  std::map<std::string, sqlite3_stmt*> statements_;
};

}  // namespace llava
