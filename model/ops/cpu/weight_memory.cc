#include "model/ops/cpu/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace llava::ops::cpu {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMapping = size_t{64} << 20;  // at least so much address space at a time

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

uint8_t* AlignUp(uint8_t* at, size_t unit) {
  return at + (RoundUp(reinterpret_cast<uintptr_t>(at), unit) - reinterpret_cast<uintptr_t>(at));
}

}  // namespace

WeightMemory::~WeightMemory() {
  for (const Mapping& mapping : mappings_) munmap(mapping.begin, mapping.bytes);
}

uint8_t* WeightMemory::Allocate(size_t bytes) {
  bytes = RoundUp(std::max<size_t>(bytes, 1), kLine);
  const std::lock_guard lock(mutex_);
  // Large pieces follow each other within a mapping: only the pages at its end are ever left over.
  uint8_t* at = next_ == nullptr ? nullptr : AlignUp(next_, kLine);
  if (at == nullptr || at > end_ || bytes > static_cast<size_t>(end_ - at)) {
    const size_t size = RoundUp(std::max(bytes, kMapping), kHugePage) + kHugePage;
    void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mappings_.push_back({static_cast<uint8_t*>(mapped), size});
#ifdef MADV_HUGEPAGE
    madvise(mapped, size, MADV_HUGEPAGE);  // without it the pages are merely small
#endif
    at = AlignUp(static_cast<uint8_t*>(mapped), kHugePage);
    end_ = static_cast<uint8_t*>(mapped) + size;
  }
  next_ = at + bytes;
  return at;
}

// The thread sanitizer also marks the function that chooses, which runs before the sanitizer is
// there.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
[[gnu::target_clones("avx512f", "avx2", "default")]]
#endif
uint64_t
ReadThrough(const uint8_t* from, int64_t bytes) {
  using Words = uint64_t __attribute__((vector_size(64)));
  Words sums[4] = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      Words words;
      __builtin_memcpy(&words, from + i + j * 64, sizeof(words));
      sums[j] += words;
    }
  }
  const Words sum = sums[0] + sums[1] + sums[2] + sums[3];
  uint64_t total = 0;
  for (int j = 0; j < 8; ++j) total += sum[j];
  return total;
}

}  // namespace llava::ops::cpu
