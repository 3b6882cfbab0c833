#pragma once

#include <chrono>
#include <filesystem>
#include <optional>

namespace llava {

// An exclusive lock on a file (flock), which ends with the object or with the process, however that
// ends. Works between threads, processes and, where the file system passes it on (NFS does), hosts.
class FileLock {
 public:
  // Creates the file if need be and waits up to `patience`. Throws std::runtime_error naming the
  // path: it cannot be opened, or somebody else holds it all the time.
  FileLock(const std::filesystem::path& path, std::chrono::milliseconds patience);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  // Whether somebody holds a lock on this file. False if there is no such file.
  static bool IsHeld(const std::filesystem::path& path);

 private:
  const int fd_;
};

}  // namespace llava
