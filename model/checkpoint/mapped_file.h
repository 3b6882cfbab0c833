#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
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

 private:
  std::filesystem::path path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace llava
