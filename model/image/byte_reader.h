#pragma once

// Bounds-checked numbers out of a picture file.

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace llava {

// A view of `bytes`; every access throws std::invalid_argument ("the NAME file is cut off ...")
// past the end. Const after construction.
class ByteReader {
 public:
  ByteReader(std::span<const uint8_t> bytes, const char* name) : bytes_(bytes), name_(name) {}

  size_t size() const { return bytes_.size(); }

  // Throws unless [offset, offset + size) lies within the file.
  void Need(size_t offset, size_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset) {
      throw std::invalid_argument("the " + std::string(name_) + " file is cut off: it has " +
                                  std::to_string(bytes_.size()) + " bytes, " +
                                  std::to_string(size) + " more are expected at byte " +
                                  std::to_string(offset));
    }
  }
  uint8_t U8(size_t at) const {
    Need(at, 1);
    return bytes_[at];
  }
  uint32_t Big(size_t at, int count) const {
    Need(at, count);
    uint32_t value = 0;
    for (int i = 0; i < count; ++i) value = value << 8 | bytes_[at + i];
    return value;
  }
  uint32_t Little(size_t at, int count) const {
    Need(at, count);
    uint32_t value = 0;
    for (int i = count - 1; i >= 0; --i) value = value << 8 | bytes_[at + i];
    return value;
  }
  // Like the other readers, but false past the end.
  bool Has(size_t at, std::string_view text) const {
    return at <= bytes_.size() && text.size() <= bytes_.size() - at &&
           std::string_view(reinterpret_cast<const char*>(bytes_.data()) + at, text.size()) == text;
  }
  ByteReader Sub(size_t at, size_t size) const {
    Need(at, size);
    return {bytes_.subspan(at, size), name_};
  }

 private:
  std::span<const uint8_t> bytes_;
  const char* name_;
};

}  // namespace llava
