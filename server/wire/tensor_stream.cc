#include "server/wire/tensor_stream.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/runtime/crc32c.h"

namespace llava {
namespace {

const char* DataTypeName(v1::DataType dtype) {
  switch (dtype) {
    case v1::DATA_TYPE_FLOAT32:
      return "float32";
    case v1::DATA_TYPE_FLOAT16:
      return "float16";
    case v1::DATA_TYPE_BFLOAT16:
      return "bfloat16";
    default:
      return "unknown";
  }
}

}  // namespace

size_t ElementBytes(v1::DataType dtype) {
  switch (dtype) {
    case v1::DATA_TYPE_FLOAT32:
      return 4;
    case v1::DATA_TYPE_FLOAT16:
    case v1::DATA_TYPE_BFLOAT16:
      return 2;
    default:
      return 0;
  }
}

std::string ShapeName(const v1::TensorHeader& header) {
  return absl::StrCat(DataTypeName(header.dtype()), " [", absl::StrJoin(header.shape(), ", "), "]");
}

v1::TensorHeader DescribeTensor(v1::DataType dtype, std::span<const int64_t> shape,
                                std::string_view bytes) {
  v1::TensorHeader header;
  header.set_dtype(dtype);
  header.mutable_shape()->Assign(shape.begin(), shape.end());
  header.set_size_bytes(bytes.size());
  header.set_crc32c(Crc32c(bytes));
  return header;
}

std::vector<std::string_view> SplitChunks(std::string_view bytes) {
  std::vector<std::string_view> chunks;
  for (size_t at = 0; at < bytes.size(); at += kMaxChunkBytes) {
    chunks.push_back(bytes.substr(at, kMaxChunkBytes));
  }
  return chunks;
}

absl::StatusOr<TensorAssembler> TensorAssembler::Create(const v1::TensorHeader& header) {
  const uint64_t element = ElementBytes(header.dtype());
  if (element == 0) return absl::InvalidArgumentError("TensorHeader.dtype is not a known type");
  if (header.shape().empty()) return absl::InvalidArgumentError("TensorHeader.shape is empty");
  uint64_t bytes = element;
  for (const int64_t side : header.shape()) {
    if (side < 1 || bytes > std::numeric_limits<int64_t>::max() / static_cast<uint64_t>(side)) {
      return absl::InvalidArgumentError(
          absl::StrCat("TensorHeader.shape ", ShapeName(header), " has a side out of range"));
    }
    bytes *= static_cast<uint64_t>(side);
  }
  if (bytes != header.size_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("TensorHeader.size_bytes is ",
                                                   header.size_bytes(), ", but ", ShapeName(header),
                                                   " has ", bytes, " bytes"));
  }
  return TensorAssembler(header);
}

TensorAssembler::TensorAssembler(const v1::TensorHeader& header) : header_(header) {
  bytes_.reserve(header.size_bytes());
}

absl::Status TensorAssembler::Add(std::string_view chunk) {
  if (chunk.size() > kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("chunk of ", chunk.size(), " bytes, at most ",
                                                   kMaxChunkBytes, " are allowed"));
  }
  if (bytes_.size() + chunk.size() > header_.size_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the chunks have more than the ", header_.size_bytes(), " bytes that the header says"));
  }
  bytes_ += chunk;
  return absl::OkStatus();
}

absl::StatusOr<std::string> TensorAssembler::Finish() && {
  if (bytes_.size() != header_.size_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("the chunks end after ", bytes_.size(), " of ",
                                                   header_.size_bytes(), " bytes"));
  }
  if (const uint32_t crc = Crc32c(bytes_); crc != header_.crc32c()) {
    return absl::DataLossError(absl::StrCat("tensor damaged on the way: CRC32C is ", crc,
                                            ", the header says ", header_.crc32c(),
                                            "; send it again"));
  }
  return std::move(bytes_);
}

}  // namespace llava
