#pragma once

#include <sqlite3.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

namespace llava {

// Nothing that SQLite writes to files of such an ending finds room on the disk while it lives.
class NoSpace {
 public:
  explicit NoSpace(std::string_view ending = "") {
    ending_ = ending;
    Set("write", reinterpret_cast<sqlite3_syscall_ptr>(Write));
    Set("pwrite", reinterpret_cast<sqlite3_syscall_ptr>(WriteAt));
    Set("pwrite64", reinterpret_cast<sqlite3_syscall_ptr>(WriteAt));
  }
  ~NoSpace() {
    for (const char* name : {"write", "pwrite", "pwrite64"}) Set(name, nullptr);
  }

 private:
  static bool IsFull(int file) {
    const auto link = std::filesystem::path("/proc/self/fd") / std::to_string(file);
    std::error_code error;
    const bool full = std::filesystem::read_symlink(link, error).string().ends_with(ending_);
    errno = ENOSPC;
    return full;
  }
  static ssize_t Write(int file, const void* bytes, size_t count) {
    return IsFull(file) ? -1 : write(file, bytes, count);
  }
  static ssize_t WriteAt(int file, const void* bytes, size_t count, off_t at) {
    return IsFull(file) ? -1 : pwrite(file, bytes, count, at);
  }
  static void Set(const char* name, sqlite3_syscall_ptr call) {
    sqlite3_vfs* const usual = sqlite3_vfs_find(nullptr);
    usual->xSetSystemCall(usual, name, call);
  }
  static inline std::string_view ending_;
};

}  // namespace llava
