#pragma once

#include <sqlite3.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>

namespace llava {

// Nothing that SQLite writes finds room on the disk while it lives.
class NoSpace {
 public:
  NoSpace() {
    Set("write", reinterpret_cast<sqlite3_syscall_ptr>(Write));
    Set("pwrite", reinterpret_cast<sqlite3_syscall_ptr>(WriteAt));
    Set("pwrite64", reinterpret_cast<sqlite3_syscall_ptr>(WriteAt));
  }
  ~NoSpace() {
    for (const char* name : {"write", "pwrite", "pwrite64"}) Set(name, nullptr);
  }

 private:
  static ssize_t Write(int, const void*, size_t) {
    errno = ENOSPC;
    return -1;
  }
  static ssize_t WriteAt(int, const void*, size_t, off_t) { return Write(0, nullptr, 0); }
  static void Set(const char* name, sqlite3_syscall_ptr call) {
    sqlite3_vfs* const usual = sqlite3_vfs_find(nullptr);
    usual->xSetSystemCall(usual, name, call);
  }
};

}  // namespace llava
