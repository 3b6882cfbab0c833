#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "model/checkpoint/mapped_tensor.h"
#include "model/checkpoint/tensor_file.h"

namespace llava {

// Where the tensors of a file lie, by name, told by its beginning. `head`: at least the whole
// header (see SafetensorsHeaderBytes) of a file of `file_bytes`. Checks all of it. Throws
// std::runtime_error naming file and tensor.
std::map<std::string, MappedTensor> ParseSafetensorsHeader(std::span<const uint8_t> head,
                                                           uint64_t file_bytes,
                                                           const std::string& path);
// Bytes before the tensors, told by the first 8. 8 if there are not so many, or if what they say is
// more than a header may have.
uint64_t SafetensorsHeaderBytes(std::span<const uint8_t> head);

// A safetensors file: 8 bytes header length, JSON header, tensor bytes without gap or overlap.
class SafetensorsFile : public TensorFile {
 public:
  // Checks the whole header. Throws std::runtime_error naming file and tensor.
  explicit SafetensorsFile(std::shared_ptr<const MappedFile> file);

  // Whether the file begins like one: a plausible length, then '{'.
  static bool Looks(const MappedFile& file);

  const std::map<std::string, TensorInfo>& tensors() const override { return infos_; }
  at::Tensor Get(const std::string& name) const override;
  void Release(const std::string& name) const override;

 private:
  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, MappedTensor> places_;
  std::map<std::string, TensorInfo> infos_;
};

}  // namespace llava
