#include "server/gateway/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// Somebody must make room.
constexpr std::chrono::milliseconds kFreeing{5000};

absl::Status WriteAndSync(const std::filesystem::path& path, std::string_view bytes) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0) return FileError("create", path, errno);
  absl::Status status = WriteAll(file, bytes, path);
  if (status.ok() && fsync(file) != 0) status = FileError("sync", path, errno);
  close(file);
  return status;
}

}  // namespace

absl::Status DiskFull(const std::string& message) {
  return WithReason(OverloadedError(message, kFreeing), kReasonDiskFull);
}

absl::Status FileError(absl::string_view what, const std::filesystem::path& path, int error) {
  const std::string message =
      absl::StrCat("cannot ", what, " ", path.string(), ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT)
    return DiskFull(absl::StrCat(message, "; make room there"));
  return absl::InternalError(message);
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0 && errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat("there is no file ", path.string()));
  }
  if (file < 0) return FileError("open", path, errno);
  std::string bytes;
  char part[64 << 10];
  ssize_t size = 0;
  while ((size = read(file, part, sizeof part)) != 0) {
    if (size > 0) {
      bytes.append(part, static_cast<size_t>(size));
    } else if (errno != EINTR) {
      const absl::Status failed = FileError("read", path, errno);
      close(file);
      return failed;
    }
  }
  close(file);
  return bytes;
}

absl::Status WriteAll(int file, std::string_view bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(file, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      return FileError("write", path, errno);
    }
  }
  return absl::OkStatus();
}

absl::Status MakePrivateFolder(const std::filesystem::path& path) {
  const auto folder = path.has_filename() ? path : path.parent_path();  // "folder/"
  std::error_code error;
  if (std::filesystem::is_directory(folder, error)) return absl::OkStatus();
  if (folder.has_parent_path()) {
    std::filesystem::create_directories(folder.parent_path(), error);
    if (error) return FileError("make", folder.parent_path(), error.value());
  }
  if (mkdir(folder.c_str(), 0700) == 0) return absl::OkStatus();
  const int fault = errno;
  if (std::filesystem::is_directory(folder, error)) return absl::OkStatus();
  return FileError("make", folder, fault);
}

absl::Status SyncFolder(const std::filesystem::path& path) {
  const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return FileError("open", path, errno);
  absl::Status status;
  if (fsync(folder) != 0) status = FileError("sync", path, errno);
  close(folder);
  return status;
}

absl::Status WriteFileDurably(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  std::error_code error;
  if (auto status = WriteAndSync(temporary, bytes); !status.ok()) {
    std::filesystem::remove(temporary, error);
    return status;
  }
  std::filesystem::rename(temporary, path, error);
  if (error) return FileError("rename to", path, error.value());
  return SyncFolder(path.parent_path());
}

}  // namespace llava
