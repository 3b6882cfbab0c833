#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>

namespace llava {

// Reads a file from front to end in another thread, ahead of who uses the bytes. One thread.
class FileReader {
 public:
  static constexpr size_t kChunkBytes = size_t{2} << 20;

  // Where the bytes go.
  enum class Into {
    kMemory,  // all of them, past the page cache where the file is not in it
    kWindow,  // chunks go by, and stay in the page cache
  };
  // The memory that this needs for a file of `size` bytes.
  static size_t MemoryBytes(uint64_t size, Into into);

  // `size`: how many bytes the file has to have. `memory`: page-aligned, MemoryBytes() of it.
  FileReader(std::filesystem::path path, uint64_t size, Into into, std::shared_ptr<uint8_t> memory);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  // The next at most kChunkBytes; nothing at the end. In a window they are valid until the next
  // call. `waiting` is called every now and then while there is nothing yet, and may throw. Throws
  // std::runtime_error naming the path and the system's reason, or that the file ends early.
  std::span<const uint8_t> Next(const std::function<void()>& waiting);

 private:
  static constexpr uint64_t kAhead = 4;  // chunks

  void Run();
  // The whole of [offset, offset + count) to `to`; past the page cache if `direct` is a descriptor.
  void Read(int fd, int direct, uint64_t offset, size_t count, uint8_t* to) const;
  uint8_t* Place(uint64_t chunk) const;

  const std::filesystem::path path_;
  const uint64_t size_;
  const Into into_;
  const std::shared_ptr<uint8_t> memory_;
  uint64_t taken_ = 0;  // chunks that Next gave out

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t read_ = 0;      // chunks; guarded by mutex_, as are those below
  uint64_t may_read_ = 0;  // chunks
  bool stop_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace llava
