#pragma once

// Tensors on the wire: a header, then the bytes in chunks. No LibTorch here.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/types.pb.h"

namespace llava {

inline constexpr size_t kMaxChunkBytes = 256u << 10;

// Bytes of one element, 0 for an unknown type.
size_t ElementBytes(v1::DataType dtype);
// "bfloat16 [576, 1024]", for messages.
std::string ShapeName(const v1::TensorHeader& header);

// The header of a tensor whose row-major little-endian bytes are `bytes`.
v1::TensorHeader DescribeTensor(v1::DataType dtype, std::span<const int64_t> shape,
                                std::string_view bytes);

// The chunks of a tensor, in order, at most kMaxChunkBytes each; views into `bytes`.
std::vector<std::string_view> SplitChunks(std::string_view bytes);

// Puts a tensor together again. One thread.
class TensorAssembler {
 public:
  // INVALID_ARGUMENT: unknown dtype, sides below 1, size that is not that of the shape. Nothing is
  // allocated before these checks: whoever takes headers of strangers compares the shape first.
  static absl::StatusOr<TensorAssembler> Create(const v1::TensorHeader& header);

  // INVALID_ARGUMENT: more than kMaxChunkBytes at once, or more in all than the header says.
  absl::Status Add(std::string_view chunk);

  // The bytes. INVALID_ARGUMENT: fewer than the header says. DATA_LOSS: wrong checksum.
  absl::StatusOr<std::string> Finish() &&;

  const v1::TensorHeader& header() const { return header_; }

 private:
  explicit TensorAssembler(const v1::TensorHeader& header);

  v1::TensorHeader header_;
  std::string bytes_;
};

}  // namespace llava
