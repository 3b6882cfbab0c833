#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace llava {

// The bytes of a file, mapped read-only or read into memory. Const, thread-safe. A file must not be
// shortened while it is mapped (versions of the model repository never change).
class MappedFile {
 public:
  // Throws std::runtime_error naming the path.
  explicit MappedFile(const std::filesystem::path& path);
  // Instead of a mapping: the first `size` bytes of `memory`, into which somebody has read it.
  MappedFile(const std::filesystem::path& path, std::shared_ptr<const uint8_t> memory, size_t size);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Takes the pages that lie wholly in [offset, offset + size) out of this process until they are
  // read again, if they are mapped.
  void Release(size_t offset, size_t size) const;

 private:
  const std::filesystem::path path_;
  const std::shared_ptr<const uint8_t> memory_;  // null: mapped
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace llava
