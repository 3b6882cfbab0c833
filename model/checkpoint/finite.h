#pragma once

// Weights that are no numbers: found before they are served.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/ScalarType.h>

#include "model/checkpoint/packed_finite.h"

namespace llava {

// Values among `bytes` of this type that are NaN or infinite; 0 for integers.
uint64_t CountNonFinite(at::ScalarType dtype, std::span<const uint8_t> bytes);

// "", or which tensors hold how many such values: "3 values of tensor \"x\" are NaN or infinite".
std::string DescribeNonFinite(const std::map<std::string, uint64_t>& counts);

// Looks for them in the bytes of a safetensors file as they come by, in packed matrices too. One
// that cannot be understood is passed over: opening it tells why. One thread.
class FiniteCheck {
 public:
  explicit FiniteCheck(uint64_t file_bytes) : file_bytes_(file_bytes) {}
  // The next bytes of the file.
  void Feed(std::span<const uint8_t> bytes);
  // By tensor, those that have some.
  const std::map<std::string, uint64_t>& counts() const { return counts_; }

 private:
  struct Range {
    uint64_t begin, end;
    at::ScalarType dtype;
    std::string name;
  };
  // Whether the header has been read, from here on; false: more bytes are needed.
  bool ReadHeader(std::span<const uint8_t> bytes);

  const uint64_t file_bytes_;
  uint64_t position_ = 0;
  std::vector<uint8_t> head_;
  bool header_read_ = false;
  std::vector<Range> ranges_;  // floats, and packed matrices as bytes; in order
  size_t next_ = 0;            // first range that does not end before position_
  PackedFiniteCheck packed_;   // of the packed matrix that is going by
  std::map<std::string, uint64_t> counts_;
};

}  // namespace llava
