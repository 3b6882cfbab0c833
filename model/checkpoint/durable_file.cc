#include "model/checkpoint/durable_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

namespace llava {
namespace {

[[noreturn]] void Fail(const std::filesystem::path& path, const char* what, int error) {
  throw std::runtime_error(path.string() + ": cannot " + what + ": " + std::strerror(error));
}

// Small pieces are gathered to so many bytes.
constexpr size_t kBuffer = 64 << 10;

std::filesystem::path FolderOf(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

}  // namespace

StagedFile::StagedFile(const std::filesystem::path& path)
    : StagedFile(path, path.string() + ".part", O_TRUNC) {}

StagedFile::StagedFile(std::filesystem::path path, std::filesystem::path part)
    : StagedFile(std::move(path), std::move(part), O_EXCL) {}

StagedFile::StagedFile(std::filesystem::path path, std::filesystem::path part, int flags)
    : path_(std::move(path)),
      part_(std::move(part)),
      fd_(open(part_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644)) {
  if (fd_ < 0) Fail(part_, "create", errno);
}

StagedFile::~StagedFile() {
  if (fd_ >= 0) close(fd_);
  if (!committed_) unlink(part_.c_str());
}

void StagedFile::Write(std::string_view piece) {
  if (buffered_.size() + piece.size() > kBuffer) {
    Flush(buffered_);
    buffered_.clear();
  }
  if (piece.size() > kBuffer) {
    Flush(piece);
  } else {
    buffered_ += piece;
  }
}

void StagedFile::Flush(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) Fail(part_, "write", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

void StagedFile::Commit(Sync sync) {
  Flush(buffered_);
  buffered_.clear();
  if (sync == Sync::kNow && fsync(fd_) != 0) Fail(part_, "fsync", errno);
  const int closed = close(fd_);
  fd_ = -1;
  if (closed != 0) Fail(part_, "close", errno);
  if (rename(part_.c_str(), path_.c_str()) != 0) Fail(path_, "rename a file to this", errno);
  committed_ = true;
  if (sync == Sync::kNow) SyncFolder(FolderOf(path_));
}

void WriteDurably(const std::filesystem::path& path, std::span<const std::string_view> pieces) {
  StagedFile file(path, path.string() + ".tmp-" + RandomName());
  for (const std::string_view piece : pieces) file.Write(piece);
  file.Commit();
}

void WriteDurably(const std::filesystem::path& path, std::string_view content) {
  WriteDurably(path, std::span(&content, 1));
}

void SyncFolder(const std::filesystem::path& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) Fail(folder, "open the folder", errno);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  if (result != 0) Fail(folder, "fsync the folder", error);
}

bool RenameNewFolder(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return true;
  // File systems without that flag: a rename over a folder fails unless that folder is empty, and
  // versions never are.
  if (errno == EINVAL && rename(from.c_str(), to.c_str()) == 0) return true;
  if (errno == EEXIST || errno == ENOTEMPTY) return false;
  throw std::runtime_error(to.string() + ": cannot publish: " + std::strerror(errno));
}

// By one descriptor: the file may be replaced meanwhile.
std::string ReadSmallFile(const std::filesystem::path& path, uint64_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) Fail(path, "read", errno);
  std::string content;
  std::string piece(64 << 10, '\0');
  for (;;) {
    const ssize_t count = read(fd, piece.data(), piece.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0 || content.size() > max_bytes) {
      const int error = errno;
      close(fd);
      if (count < 0) Fail(path, "read", error);
      break;
    }
    content.append(piece, 0, static_cast<size_t>(count));
  }
  if (content.size() > max_bytes) {
    throw std::runtime_error(path.string() + ": is larger than " + std::to_string(max_bytes) +
                             " bytes");
  }
  return content;
}

std::string RandomName() {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::random_device random;
  std::string name;
  while (name.size() < 32) {
    for (uint32_t bits = random(), i = 0; i < 8; ++i, bits >>= 4) name += kDigits[bits & 15];
  }
  return name;
}

}  // namespace llava
