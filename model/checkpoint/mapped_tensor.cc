#include "model/checkpoint/mapped_tensor.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <stdexcept>
#include <utility>

namespace llava {
namespace {

constexpr std::pair<const char*, at::ScalarType> kDtypes[] = {
    {"F32", at::kFloat}, {"BF16", at::kBFloat16}, {"F16", at::kHalf},  {"F64", at::kDouble},
    {"I64", at::kLong},  {"I32", at::kInt},       {"I16", at::kShort}, {"I8", at::kChar},
    {"U8", at::kByte},   {"BOOL", at::kBool},
};

}  // namespace

MappedTensorFile::MappedTensorFile(std::shared_ptr<const MappedFile> file, MappedTensors places)
    : file_(std::move(file)), places_(std::move(places)), infos_(places_.begin(), places_.end()) {}

const MappedTensor& MappedTensorFile::Place(const std::string& name) const {
  const auto place = places_.find(name);
  if (place != places_.end()) return place->second;
  throw std::out_of_range(file_->path().string() + ": has no tensor \"" + name + "\"");
}

at::Tensor MappedTensorFile::Get(const std::string& name) const {
  return ViewMapped(file_, Place(name));
}

void MappedTensorFile::Release(const std::string& name) const {
  const auto place = places_.find(name);
  if (place == places_.end() || !place->second.strides.empty()) return;  // one with gaps stays
  file_->Release(place->second.offset, place->second.bytes());
}

std::optional<int64_t> CountElements(std::span<const int64_t> shape, size_t element_bytes) {
  int64_t count = 1, limit = static_cast<int64_t>(element_bytes);
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(count, size, &count) ||
        (size > 0 && __builtin_mul_overflow(limit, size, &limit))) {
      return std::nullopt;
    }
  }
  return count;
}

at::Tensor ViewMapped(std::shared_ptr<const MappedFile> file, const MappedTensor& tensor) {
  auto* data = const_cast<uint8_t*>(file->bytes().data() + tensor.offset);
  const size_t element = at::elementSize(tensor.dtype);
  const auto options = at::TensorOptions().dtype(tensor.dtype);
  if (reinterpret_cast<uintptr_t>(data) % element != 0) {
    // Copy the bytes that the strides reach, then look at the copy.
    int64_t last = 0;
    if (tensor.strides.empty()) {
      last = static_cast<int64_t>(tensor.numel()) - 1;
    } else {
      for (size_t i = 0; i < tensor.shape.size(); ++i) {
        last += (tensor.shape[i] - 1) * tensor.strides[i];
      }
    }
    if (last < 0) return at::empty(tensor.shape, options);
    const at::Tensor flat = at::empty({last + 1}, options);
    std::memcpy(flat.data_ptr(), data, static_cast<size_t>(last + 1) * element);
    return tensor.strides.empty() ? flat.view(tensor.shape)
                                  : flat.as_strided(tensor.shape, tensor.strides).contiguous();
  }
  const auto keep = [file = std::move(file)](void*) {};
  if (tensor.strides.empty()) return at::from_blob(data, tensor.shape, keep, options);
  return at::from_blob(data, tensor.shape, tensor.strides, keep, options).contiguous();
}

std::string DtypeName(at::ScalarType dtype) {
  for (const auto& [name, type] : kDtypes) {
    if (type == dtype) return name;
  }
  return at::toString(dtype);
}

std::optional<at::ScalarType> DtypeOf(std::string_view name) {
  for (const auto& [known, type] : kDtypes) {
    if (name == known) return type;
  }
  return std::nullopt;
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace llava
