#pragma once

// Memory for weights: anonymous, in pages of 2 MiB where the system has them, which are read up to
// 1.5 times as fast as pages of 4 KiB.

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace llava::ops::cpu {

// Hands out pieces of large mappings; all are given back with the object. Pages that were never
// written take no memory. Thread-safe.
class WeightMemory {
 public:
  WeightMemory() = default;
  ~WeightMemory();
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  // Zeros, aligned to 64 bytes. Throws std::bad_alloc.
  uint8_t* Allocate(size_t bytes);

 private:
  struct Mapping {
    uint8_t* begin;
    size_t bytes;
  };

  std::mutex mutex_;
  std::vector<Mapping> mappings_;  // all below: guarded by mutex_
  uint8_t* next_ = nullptr;        // within the last mapping
  uint8_t* end_ = nullptr;
};

// Reads memory as fast as the processor can and returns a sum of it: the limit of everything that
// reads weights once.
uint64_t ReadThrough(const uint8_t* from, int64_t bytes);

}  // namespace llava::ops::cpu
