#pragma once

#include <map>
#include <memory>
#include <string>

#include "model/checkpoint/mapped_tensor.h"
#include "model/checkpoint/tensor_file.h"

namespace llava {

// What torch.save writes (since PyTorch 1.6) for a dictionary of tensors: a zip archive of stored
// entries with a pickle and one entry per storage. Entries of the dictionary that are no tensors
// are left out of tensors().
class TorchArchive : public TensorFile {
 public:
  // Reads the directory and the pickle. Throws std::runtime_error naming file and tensor.
  explicit TorchArchive(std::shared_ptr<const MappedFile> file);

  // Whether the file begins like a zip archive.
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
