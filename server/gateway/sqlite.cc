#include "server/gateway/sqlite.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "server/gateway/file_io.h"
#include "server/gateway/sqlite_log_file.h"

namespace llava {
namespace {

int Bind(sqlite3_stmt* statement, int index, const SqlValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) {
    return sqlite3_bind_int64(statement, index, *number);
  }
  // A null pointer would bind NULL: empty views point at "".
  if (const auto* text = std::get_if<std::string_view>(&value)) {
    return sqlite3_bind_text64(statement, index, text->empty() ? "" : text->data(), text->size(),
                               SQLITE_STATIC, SQLITE_UTF8);
  }
  if (const auto* blob = std::get_if<SqlBlob>(&value)) {
    const auto& bytes = blob->bytes;
    return sqlite3_bind_blob64(statement, index, bytes.empty() ? "" : bytes.data(), bytes.size(),
                               SQLITE_STATIC);
  }
  return sqlite3_bind_null(statement, index);
}

}  // namespace

int64_t SqlRow::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string SqlRow::Text(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return data == nullptr ? "" : std::string(static_cast<const char*>(data), size);
}

bool SqlRow::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

absl::StatusOr<std::unique_ptr<SqlDatabase>> SqlDatabase::OpenAs(const std::string& path,
                                                                 int flags) {
  sqlite3* handle = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX, GatheringLogVfs());
  std::unique_ptr<SqlDatabase> database(new SqlDatabase(handle));
  if (code != SQLITE_OK) return database->Error(absl::StrCat("cannot open ", path));
  sqlite3_extended_result_codes(handle, 1);
  return database;
}

absl::StatusOr<std::unique_ptr<SqlDatabase>> SqlDatabase::OpenToRead(const std::string& path) {
  return OpenAs(path, SQLITE_OPEN_READONLY);
}

absl::StatusOr<std::unique_ptr<SqlDatabase>> SqlDatabase::Open(const std::string& path) {
  // SQLite would make it readable for all, and gives its log the same mode. Never opened when it is
  // there: to close it again would lose the locks that another connection of this process has.
  const int made = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (made < 0 && errno != EEXIST) return FileError("create", path, errno);
  if (made >= 0) close(made);
  auto opened = OpenAs(path, SQLITE_OPEN_READWRITE);
  if (!opened.ok()) return opened.status();
  std::unique_ptr<SqlDatabase> database = *std::move(opened);
  // A log that a slow reader or checkpoint has let grow beyond its limit, of 32 MiB, is cut when it
  // begins anew.
  auto status = database->Script(
      "PRAGMA journal_mode=WAL; PRAGMA journal_size_limit=33554432;"
      "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
      "PRAGMA busy_timeout=5000; PRAGMA cache_spill=OFF; PRAGMA secure_delete=ON;");
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  // Takes the place of SQLite's own checkpoints, which would run within a commit.
  sqlite3_wal_hook(
      database->handle_,
      [](void* self, sqlite3*, const char*, int pages) {
        static_cast<SqlDatabase*>(self)->log_pages_ = pages;
        return SQLITE_OK;
      },
      database.get());
  return database;
}

SqlDatabase::~SqlDatabase() {
  for (const auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(handle_);
}

absl::Status SqlDatabase::Query(std::string_view sql, std::initializer_list<SqlValue> values,
                                const std::function<void(const SqlRow&)>& row) {
  auto known = statements_.find(sql);
  if (known == statements_.end()) known = statements_.emplace(sql, nullptr).first;
  sqlite3_stmt*& statement = known->second;
  if (statement == nullptr &&
      sqlite3_prepare_v3(handle_, sql.data(), static_cast<int>(sql.size()),
                         SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK) {
    return Error(sql);
  }
  int index = 0;
  int code = SQLITE_OK;
  for (const SqlValue& value : values) {
    code = Bind(statement, ++index, value);
    if (code != SQLITE_OK) break;
  }
  if (code == SQLITE_OK) {
    while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
      if (row) row(SqlRow(statement));
    }
  }
  absl::Status status = code == SQLITE_DONE ? absl::OkStatus() : Error(sql);
  sqlite3_reset(statement);
  sqlite3_clear_bindings(statement);
  return status;
}

absl::Status SqlDatabase::Script(const std::string& sql) {
  if (sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) {
    return absl::OkStatus();
  }
  return Error(sql);
}

absl::Status SqlDatabase::CopyTo(SqlDatabase& target) {
  // The copy is its own alone, and may be larger than the memory.
  if (auto status = target.Script("PRAGMA cache_spill=ON"); !status.ok()) return status;
  sqlite3_backup* backup = sqlite3_backup_init(target.handle_, "main", handle_, "main");
  if (backup == nullptr) return target.Error("begin of a copy");
  // All pages in one step: a write by another process would make smaller ones begin again.
  sqlite3_backup_step(backup, -1);
  return sqlite3_backup_finish(backup) == SQLITE_OK ? absl::OkStatus() : target.Error("copy");
}

absl::Status SqlDatabase::CheckpointLog() {
  const int code =
      sqlite3_wal_checkpoint_v2(handle_, nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
  // Busy: another connection is at it.
  if (code == SQLITE_OK || (code & 0xff) == SQLITE_BUSY) return absl::OkStatus();
  return Error("checkpoint");
}

int64_t SqlDatabase::changes() const { return sqlite3_changes64(handle_); }
int64_t SqlDatabase::total_changes() const { return sqlite3_total_changes64(handle_); }
bool SqlDatabase::in_transaction() const { return sqlite3_get_autocommit(handle_) == 0; }

absl::Status SqlDatabase::Error(std::string_view what) const {
  const std::string message =
      absl::StrCat("session store: ", handle_ ? sqlite3_errmsg(handle_) : "out of memory", " (",
                   std::string(what.substr(0, 80)), ")");
  if (handle_ != nullptr && (sqlite3_errcode(handle_) & 0xff) == SQLITE_FULL) {
    return DiskFull(absl::StrCat(message, "; free disk space under --data-dir"));
  }
  return absl::InternalError(message);
}

}  // namespace llava
