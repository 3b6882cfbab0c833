#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>

namespace llava {

// Memory to read files into, used again and again: for new memory the system needs about as long
// as a disk for the bytes that go into it. Thread-safe.
class ReadBuffers : public std::enable_shared_from_this<ReadBuffers> {
 public:
  static std::shared_ptr<ReadBuffers> Create();
  ~ReadBuffers();
  ReadBuffers(const ReadBuffers&) = delete;
  ReadBuffers& operator=(const ReadBuffers&) = delete;

  // At least `size` bytes, on huge pages where there are some and aligned to them; what is in them
  // is anything. They come back here with the last reference. Pages that were never written take
  // no memory. Throws std::bad_alloc.
  std::shared_ptr<uint8_t> Take(size_t size);
  // So many bytes at most will be asked for: more than that is not kept here.
  void Keep(uint64_t bytes);

 private:
  ReadBuffers() = default;
  void GiveBack(uint8_t* memory, size_t size);
  void DropLargest();

  std::mutex mutex_;
  std::multimap<size_t, uint8_t*> spare_;  // by size; guarded by mutex_, as are those below
  uint64_t spare_bytes_ = 0;
  uint64_t keep_ = std::numeric_limits<uint64_t>::max();
};

}  // namespace llava
