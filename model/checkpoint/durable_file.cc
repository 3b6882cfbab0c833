#include "model/checkpoint/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>

namespace llava {
namespace {

[[noreturn]] void Fail(const std::filesystem::path& path, const char* what, int error) {
  throw std::runtime_error(path.string() + ": cannot " + what + ": " + std::strerror(error));
}

// Closes and, unless kept, removes the file.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::filesystem::path path)
      : path_(std::move(path)),
        fd_(open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)) {
    if (fd_ < 0) Fail(path_, "create", errno);
  }
  ~TemporaryFile() {
    if (fd_ >= 0) close(fd_);
    if (!kept_) unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void Write(std::string_view piece) {
    while (!piece.empty()) {
      const ssize_t written = write(fd_, piece.data(), piece.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) Fail(path_, "write", errno);
      piece.remove_prefix(static_cast<size_t>(written));
    }
  }
  void RenameTo(const std::filesystem::path& target) {
    if (fsync(fd_) != 0) Fail(path_, "fsync", errno);
    const int closed = close(fd_);
    fd_ = -1;
    if (closed != 0) Fail(path_, "close", errno);
    if (rename(path_.c_str(), target.c_str()) != 0) Fail(target, "rename a file to this", errno);
    kept_ = true;
  }

 private:
  std::filesystem::path path_;
  int fd_;
  bool kept_ = false;
};

}  // namespace

void WriteDurably(const std::filesystem::path& path, std::span<const std::string_view> pieces) {
  TemporaryFile file(path.string() + ".tmp-" + RandomName());
  for (const std::string_view piece : pieces) file.Write(piece);
  file.RenameTo(path);
  SyncFolder(path.has_parent_path() ? path.parent_path() : ".");
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

// By one descriptor: the file may be replaced meanwhile.
std::string ReadSmallFile(const std::filesystem::path& path, uint64_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::runtime_error(path.string() + ": cannot read: " + std::strerror(errno));
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
