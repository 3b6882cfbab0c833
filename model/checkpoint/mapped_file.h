#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>

namespace llava {

// A file mapped read-only into memory. Const after construction, thread-safe. The file must not be
// shortened while it is mapped (versions of the model repository never change).
class MappedFile {
 public:
  // Throws std::runtime_error naming the path.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Takes the pages that lie wholly in [offset, offset + size) out of this process until they are
  // read again.
  void Release(size_t offset, size_t size) const;
  // All of them. Throws std::runtime_error if a file in memory cannot be mapped in its place.
  void ReleaseAll() const;

  // Instead of a mapping: memory for the first `size` bytes of the file, on huge pages where there
  // are some, rounded up to 4 MiB. The caller reads them into memory() before anybody else looks.
  // What is released comes from the file when it is read again.
  static std::shared_ptr<MappedFile> InMemory(const std::filesystem::path& path, size_t size);
  uint8_t* memory() { return const_cast<uint8_t*>(data_); }

 private:
  MappedFile() = default;

  std::filesystem::path path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  void* mapping_ = nullptr;  // around data_
  size_t mapping_size_ = 0;
  mutable std::mutex mutex_;
  mutable int fd_ = -1;  // of a file of which anything is in memory; guarded by mutex_
};

}  // namespace llava
