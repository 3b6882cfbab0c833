#include "server/gateway/store_backup.h"

#include <cerrno>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/digest/sha256.h"
#include "server/gateway/file_io.h"
#include "server/gateway/sqlite.h"
#include "server/gateway/store_schema.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

constexpr char kDatabase[] = "sessions.db";
constexpr char kImages[] = "images";
// Pictures may be deleted while they are copied; then all begins again.
constexpr int kTries = 5;

absl::Status MakeFolders(const fs::path& store) {
  if (auto status = MakePrivateFolder(store); !status.ok()) return status;
  return MakePrivateFolder(store / kImages);
}

absl::Status CheckStore(const fs::path& folder, absl::string_view flag) {
  if (fs::is_regular_file(folder / kDatabase)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("there are no sessions in ", folder.string(), " (", flag, ")"));
}

struct Copied {
  BackupContents contents;
  std::set<std::string> images;
};

// A copy of the tables in one file, with nothing running in it.
absl::StatusOr<Copied> CopyTables(const fs::path& from, const fs::path& to, bool interrupt) {
  // What is restored may lie where nothing can be written, and is not changed by it.
  auto source = interrupt ? SqlDatabase::Open(from.string()) : SqlDatabase::OpenToRead(from);
  if (!source.ok()) return source.status();
  std::error_code error;
  fs::remove(to, error);
  auto target = SqlDatabase::Open(to.string());
  if (!target.ok()) return target.status();
  auto status = (*source)->CopyTo(**target);
  if (status.ok() && interrupt) status = MigrateStore(**target);
  if (status.ok() && interrupt) {
    status = (*target)->Script(
        "UPDATE turns SET state = 3, finish_reason = 7, error_code = 9, error_message ="
        " 'a backup was made during this answer; ask again', request_key = NULL,"
        " request_hash = NULL WHERE state = 1;"
        "DELETE FROM running_turns");
  }
  if (status.ok()) status = (*target)->Script("PRAGMA journal_mode=DELETE");
  std::string verdict;
  if (status.ok()) {
    status = (*target)->Query("PRAGMA integrity_check(1)", {},
                              [&](const SqlRow& row) { verdict = row.Text(0); });
  }
  if (status.ok() && verdict != "ok") {
    return absl::DataLossError(
        absl::StrCat("the tables in ", from.string(), " are damaged: ", verdict));
  }
  Copied copied;
  if (status.ok()) {
    status =
        (*target)->Query("SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM turns)", {},
                         [&](const SqlRow& row) {
                           copied.contents.sessions = row.Int(0);
                           copied.contents.turns = row.Int(1);
                         });
  }
  if (status.ok()) {
    status = (*target)->Query("SELECT id FROM images", {},
                              [&](const SqlRow& row) { copied.images.insert(row.Text(0)); });
  }
  if (!status.ok()) return status;
  copied.contents.images = static_cast<int64_t>(copied.images.size());
  return copied;
}

// Copies a picture and checks it, unless it is there already. NOT_FOUND: it is not there.
absl::Status CopyImage(const std::string& id, const fs::path& from, const fs::path& to) {
  if (const auto there = ReadFile(to / id); there.ok() && ToHex(HashBytes(*there)) == id) {
    return absl::OkStatus();
  }
  const auto bytes = ReadFile(from / id);
  if (absl::IsNotFound(bytes.status())) {
    return absl::NotFoundError(absl::StrCat("picture ", id, " is missing"));
  }
  if (!bytes.ok()) return bytes.status();
  if (ToHex(HashBytes(*bytes)) != id) {
    return absl::DataLossError(absl::StrCat("picture ", (from / id).string(), " is damaged"));
  }
  return WriteFileDurably(to / id, *bytes);
}

absl::StatusOr<BackupContents> CopyOnce(const fs::path& data_dir, const fs::path& target) {
  // Pictures first: those that the tables name and that are deleted by then are here already.
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(data_dir / kImages, error)) {
    const std::string id = entry.path().filename().string();
    if (id.find('.') != std::string::npos) continue;  // being written
    auto status = CopyImage(id, data_dir / kImages, target / kImages);
    if (!status.ok() && !absl::IsNotFound(status)) return status;
  }
  if (error) return FileError("list", data_dir / kImages, error.value());
  const auto copied = CopyTables(data_dir / kDatabase, target / kDatabase, /*interrupt=*/true);
  if (!copied.ok()) return copied.status();
  for (const std::string& id : copied->images) {
    if (fs::exists(target / kImages / id)) continue;
    auto status = CopyImage(id, data_dir / kImages, target / kImages);
    if (!status.ok()) return status;
  }
  for (const auto& entry : fs::directory_iterator(target / kImages, error)) {
    if (!copied->images.contains(entry.path().filename().string())) fs::remove(entry.path(), error);
  }
  return copied->contents;
}

}  // namespace

absl::StatusOr<BackupContents> BackUpStore(const fs::path& data_dir, const fs::path& target) {
  // "copy/": the name of the folder beside it is made of its own.
  if (!target.has_filename() && target.has_relative_path()) {
    return BackUpStore(data_dir, target.parent_path());
  }
  if (auto status = CheckStore(data_dir, "--data-dir"); !status.ok()) return status;
  if (fs::exists(target)) {
    return absl::FailedPreconditionError(
        absl::StrCat(target.string(), " exists; name a new folder (--backup)"));
  }
  fs::path partial = target;
  partial += ".partial";
  std::error_code error;
  fs::remove_all(partial, error);
  if (auto status = MakeFolders(partial); !status.ok()) return status;
  absl::StatusOr<BackupContents> contents = absl::NotFoundError("not tried");
  for (int i = 0; i < kTries && absl::IsNotFound(contents.status()); ++i) {
    contents = CopyOnce(data_dir, partial);
  }
  absl::Status status = contents.status();
  if (status.ok()) status = SyncFolder(partial);
  if (status.ok()) {
    fs::rename(partial, target, error);
    if (error) status = FileError("rename to", target, error.value());
  }
  if (status.ok()) status = SyncFolder(fs::absolute(target).parent_path());
  if (status.ok()) return contents;
  fs::remove_all(partial, error);
  if (absl::IsNotFound(status)) return absl::DataLossError(status.message());
  return status;
}

absl::StatusOr<BackupContents> RestoreStore(const fs::path& source, const fs::path& data_dir) {
  if (auto status = CheckStore(source, "--restore"); !status.ok()) return status;
  // SQLite would bring the log of another file into the new one, the gateway its journal.
  for (const char* name : {kDatabase, "sessions.db-wal", "sessions.db-shm", "journal"}) {
    if (!fs::exists(data_dir / name)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(data_dir.string(), " has sessions already, or what is left of some (", name,
                     "); name a new folder (--data-dir)"));
  }
  if (auto status = MakeFolders(data_dir); !status.ok()) return status;
  // Under another name until all is there: half a store must not be taken for one.
  const fs::path partial = data_dir / (std::string(kDatabase) + ".partial");
  const auto copied = CopyTables(source / kDatabase, partial, /*interrupt=*/false);
  if (!copied.ok()) return copied.status();
  for (const std::string& id : copied->images) {
    const auto status = CopyImage(id, source / kImages, data_dir / kImages);
    if (absl::IsNotFound(status)) return absl::DataLossError(status.message());
    if (!status.ok()) return status;
  }
  std::error_code error;
  fs::rename(partial, data_dir / kDatabase, error);
  if (error) return FileError("rename to", data_dir / kDatabase, error.value());
  if (auto status = SyncFolder(data_dir); !status.ok()) return status;
  return copied->contents;
}

}  // namespace llava
