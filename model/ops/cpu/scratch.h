#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace llava::ops::cpu {

// Memory for one call at a time, aligned to cache lines; much of it in large pages, because rows
// that lie a page apart would each need a translation of their own.
class Scratch {
 public:
  // Grows only, without keeping what was in it.
  uint8_t* Get(int64_t bytes) {
    if (bytes > bytes_) {
      bytes_ = 0;
      memory_.reset();
      const auto size = static_cast<size_t>(bytes);
      const size_t unit = size < kLargePage / 2 ? kLine : kLargePage;
      const size_t rounded = (size + unit - 1) / unit * unit;
      memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(unit, rounded)));
      if (memory_ == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
      if (unit == kLargePage) madvise(memory_.get(), rounded, MADV_HUGEPAGE);
#endif
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr size_t kLine = 64, kLargePage = size_t{2} << 20;
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };

  std::unique_ptr<uint8_t[], Free> memory_;
  int64_t bytes_ = 0;
};

}  // namespace llava::ops::cpu
