#include "server/gateway/image_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace llava {
namespace {

absl::Status FileError(absl::string_view what, const std::filesystem::path& path, int error) {
  const std::string message =
      absl::StrCat("cannot ", what, " ", path.string(), ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

absl::Status WriteAndSync(const std::filesystem::path& path, std::string_view bytes) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0) return FileError("create", path, errno);
  absl::Status status;
  while (status.ok() && !bytes.empty()) {
    const ssize_t written = write(file, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(written);
    } else if (errno != EINTR) {
      status = FileError("write", path, errno);
    }
  }
  if (status.ok() && fsync(file) != 0) status = FileError("sync", path, errno);
  close(file);
  return status;
}

absl::Status SyncFolder(const std::filesystem::path& path) {
  const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return FileError("open", path, errno);
  absl::Status status;
  if (fsync(folder) != 0) status = FileError("sync", path, errno);
  close(folder);
  return status;
}

}  // namespace

absl::StatusOr<ImageFiles> ImageFiles::Open(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return FileError("make", folder, error.value());
  return ImageFiles(folder);
}

absl::Status ImageFiles::Write(const std::string& id, std::string_view bytes) {
  const auto path = folder_ / id;
  std::error_code error;
  if (std::filesystem::exists(path, error)) return absl::OkStatus();
  const auto temporary = folder_ / (id + ".tmp");
  if (auto status = WriteAndSync(temporary, bytes); !status.ok()) {
    std::filesystem::remove(temporary, error);
    return status;
  }
  std::filesystem::rename(temporary, path, error);
  if (error) return FileError("rename to", path, error.value());
  return SyncFolder(folder_);
}

absl::StatusOr<std::string> ImageFiles::Read(const std::string& id) const {
  std::ifstream file(folder_ / id, std::ios::binary | std::ios::ate);
  std::string bytes;
  if (file) {
    bytes.resize(static_cast<size_t>(file.tellg()));
    file.seekg(0).read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  if (!file || bytes.empty()) {
    return absl::DataLossError(absl::StrCat("the file of picture ", id, " is gone from ",
                                            folder_.string(), "; send the picture again"));
  }
  return bytes;
}

absl::Status ImageFiles::Remove(const std::string& id) {
  std::error_code error;
  std::filesystem::remove(folder_ / id, error);
  if (error) return FileError("remove", folder_ / id, error.value());
  return absl::OkStatus();
}

absl::Status ImageFiles::Sweep(const std::set<std::string>& known) {
  std::error_code error;
  std::set<std::string> strays;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename().string();
    if (!known.contains(name)) strays.insert(name);
  }
  if (error) return FileError("list", folder_, error.value());
  for (const std::string& name : strays) {
    if (auto status = Remove(name); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace llava
