#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/mapped_file.h"
#include "model/checkpoint/tensor_file.h"

namespace llava {

// Where a tensor lies in a mapped file.
struct MappedTensor : TensorInfo {
  std::vector<int64_t> strides;  // in elements; empty: row-major without gaps
  size_t offset = 0;             // first byte in the file; the bytes were checked to be there
};
using MappedTensors = std::map<std::string, MappedTensor>;

// A mapped file, whose format has told where its tensors lie.
class MappedTensorFile : public TensorFile {
 public:
  MappedTensorFile(std::shared_ptr<const MappedFile> file, MappedTensors places);

  const std::map<std::string, TensorInfo>& tensors() const override { return infos_; }
  at::Tensor Get(const std::string& name) const override;
  void Release(const std::string& name) const override;

 protected:
  const MappedTensor& Place(const std::string& name) const;  // throws as Get

 private:
  const std::shared_ptr<const MappedFile> file_;
  const MappedTensors places_;
  std::map<std::string, TensorInfo> infos_;
};

// Elements of `shape`; nothing if a size is negative or the bytes overflow.
std::optional<int64_t> CountElements(std::span<const int64_t> shape, size_t element_bytes);

// A CPU tensor over the mapped bytes; it keeps the mapping alive. Copied if the bytes are not
// aligned for the type or the strides are not row-major, so that the result is always contiguous.
at::Tensor ViewMapped(std::shared_ptr<const MappedFile> file, const MappedTensor& tensor);

// "F32", "BF16", ...: safetensors' names of element types.
std::string DtypeName(at::ScalarType dtype);
std::optional<at::ScalarType> DtypeOf(std::string_view name);

// "[2, 3]".
std::string ShapeText(std::span<const int64_t> shape);

}  // namespace llava
