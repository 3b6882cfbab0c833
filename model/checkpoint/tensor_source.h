#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/tensor_file.h"

namespace llava {

// Tensors under canonical names, read on demand. Thread-safe.
class TensorSource {
 public:
  // Throws std::runtime_error if there is a tensor of this name already.
  void Add(const std::string& canonical, std::shared_ptr<const TensorFile> file,
           std::string stored);
  // The same tensor as another source has.
  void Adopt(const std::string& canonical, const TensorSource& from);
  // All tensors of the other under its names, in place of those that are there.
  void Put(const std::shared_ptr<const TensorFile>& file);
  void Put(const TensorSource& from);
  void Remove(const std::string& canonical);
  // Nothing happens if there is no tensor `from`; `to` must not be there.
  void Rename(const std::string& from, const std::string& to);
  const std::map<std::string, TensorInfo>& tensors() const { return infos_; }
  // Of all tensors.
  uint64_t numel() const;
  uint64_t bytes() const;
  // Throws std::out_of_range naming the tensor. The tensor may lie in a mapped file: clone it
  // before writing to it.
  at::Tensor Get(const std::string& canonical) const;
  // As TensorFile::Release.
  void Release(const std::string& canonical) const;
  // As TensorFile::Finish, of all files, once each.
  void Finish() const;

 private:
  struct Place {
    std::shared_ptr<const TensorFile> file;
    std::string stored;
  };
  std::map<std::string, TensorInfo> infos_;
  std::map<std::string, Place> places_;
};

}  // namespace llava
