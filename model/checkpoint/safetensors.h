#pragma once

#include <map>
#include <memory>
#include <string>

#include "model/checkpoint/mapped_tensor.h"
#include "model/checkpoint/tensor_file.h"

namespace llava {

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
  std::map<std::string, TensorInfo> infos_;
  std::map<std::string, MappedTensor> places_;
};

}  // namespace llava
