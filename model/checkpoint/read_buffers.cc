#include "model/checkpoint/read_buffers.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <iterator>
#include <new>
#include <utility>

namespace llava {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

uint8_t* Map(size_t size) {
  void* mapped = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<uint8_t*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + size, kHugePage - before);
#ifdef MADV_HUGEPAGE
  madvise(begin + before, size, MADV_HUGEPAGE);  // without it the pages are merely small
#endif
  return begin + before;
}

}  // namespace

std::shared_ptr<ReadBuffers> ReadBuffers::Create() {
  return std::shared_ptr<ReadBuffers>(new ReadBuffers);
}

ReadBuffers::~ReadBuffers() { Keep(0); }

std::shared_ptr<uint8_t> ReadBuffers::Take(size_t size) {
  size = std::bit_ceil(std::max(size, kHugePage));  // files of nearly the same size share them
  uint8_t* memory = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto fits = spare_.lower_bound(size);
    if (fits != spare_.end()) {
      size = fits->first;
      memory = fits->second;
      spare_bytes_ -= size;
      spare_.erase(fits);
    } else if (!spare_.empty()) {
      // Too small: there are never more of them than were wanted at the same time.
      DropLargest();
    }
  }
  if (memory == nullptr) memory = Map(size);
  return {memory, [pool = weak_from_this(), size](uint8_t* given) {
            if (const auto buffers = pool.lock()) {
              buffers->GiveBack(given, size);
            } else {
              munmap(given, size);
            }
          }};
}

void ReadBuffers::GiveBack(uint8_t* memory, size_t size) {
  const std::lock_guard lock(mutex_);
  spare_.emplace(size, memory);
  spare_bytes_ += size;
  while (spare_bytes_ > keep_) DropLargest();
}

void ReadBuffers::Keep(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  keep_ = bytes;
  while (spare_bytes_ > keep_) DropLargest();
}

void ReadBuffers::DropLargest() {
  const auto largest = std::prev(spare_.end());
  munmap(largest->second, largest->first);
  spare_bytes_ -= largest->first;
  spare_.erase(largest);
}

}  // namespace llava
