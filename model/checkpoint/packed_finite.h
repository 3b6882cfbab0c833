#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace llava {

// Looks for scales, weights and outliers that are NaN or infinite in a packed matrix
// (docs/formats.md), as its bytes come by. One that cannot be understood is passed over: loading it
// tells why. One thread.
class PackedFiniteCheck {
 public:
  // The next bytes of the matrix.
  void Feed(std::span<const uint8_t> bytes);
  uint64_t count() const { return count_; }

 private:
  static constexpr size_t kHeaderBytes = 64;
  static constexpr size_t kUnit = 64;  // scales of a block, in bfloat16; or as many weights
  static constexpr size_t kOutlierBytes = 8;

  void ReadHeader();
  // Looks at what `bytes` begin with; how much of it.
  size_t Take(std::span<const uint8_t> bytes);

  uint64_t position_ = 0;
  std::array<uint8_t, 64> held_;  // of the header, or of a unit of which the rest is still to come
  uint64_t period_ = 0;           // bytes from one unit to the next; 0: nothing is known
  uint64_t panels_end_ = 0, outliers_begin_ = 0;
  uint64_t count_ = 0;
};

}  // namespace llava
