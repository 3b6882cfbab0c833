#include "model/checkpoint/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

namespace llava {
namespace {

[[noreturn]] void Fail(const std::filesystem::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what);
}

int Flock(int fd, int operation) {
  int result;
  do {
    result = flock(fd, operation);
  } while (result != 0 && errno == EINTR);
  return result;
}

}  // namespace

FileLock::FileLock(const std::filesystem::path& path, std::chrono::milliseconds patience)
    // For writing: NFS gives exclusive locks on such files only.
    : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (fd_ < 0) Fail(path, std::string("cannot open to lock it: ") + std::strerror(errno));
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (Flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    const bool late = std::chrono::steady_clock::now() >= deadline;
    if (error == EWOULDBLOCK && !late) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      continue;
    }
    close(fd_);
    Fail(path, error == EWOULDBLOCK ? "is locked by another process"
                                    : std::string("cannot lock: ") + std::strerror(error));
  }
}

FileLock::~FileLock() { close(fd_); }

bool FileLock::IsHeld(const std::filesystem::path& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ENOENT) return false;
    Fail(path, std::string("cannot open to see who locks it: ") + std::strerror(errno));
  }
  const bool held = Flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  close(fd);
  return held;
}

}  // namespace llava
