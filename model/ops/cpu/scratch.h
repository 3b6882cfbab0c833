#pragma once

#include <cstdint>
#include <memory>

namespace llava::ops::cpu {

// Memory for one call at a time, aligned to cache lines.
class Scratch {
 public:
  // Grows only, without keeping what was in it.
  uint8_t* Get(int64_t bytes) {
    constexpr int64_t kLine = 64;
    if (bytes > bytes_) {
      bytes_ = 0;
      memory_.reset();
      memory_.reset(new uint8_t[bytes + kLine]);
      bytes_ = bytes;
    }
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + ((at + kLine - 1) / kLine * kLine - at);
  }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  int64_t bytes_ = 0;
};

}  // namespace llava::ops::cpu
