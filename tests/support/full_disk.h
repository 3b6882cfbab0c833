#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdint>

namespace llava {

// No file of this process grows beyond `file_bytes` while it lives, which stands for a full disk:
// the last write gets in half.
class FullDisk {
 public:
  explicit FullDisk(uint64_t file_bytes) {
    EXPECT_EQ(getrlimit(RLIMIT_FSIZE, &usual_), 0);
    rlimit tight = usual_;
    tight.rlim_cur = file_bytes;
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  }
  ~FullDisk() {
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &usual_), 0);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit usual_{};
  void (*const handler_)(int) = std::signal(SIGXFSZ, SIG_IGN);
};

}  // namespace llava
