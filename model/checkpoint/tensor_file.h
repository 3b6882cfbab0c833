#pragma once

// Tensors on disk: safetensors and torch.save archives behind one reader.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace llava {

class MappedFile;

struct TensorInfo {
  at::ScalarType dtype;
  std::vector<int64_t> shape;

  uint64_t numel() const;
  uint64_t bytes() const { return numel() * at::elementSize(dtype); }
};

// A file of named tensors. Const after opening, thread-safe.
class TensorFile {
 public:
  virtual ~TensorFile() = default;
  virtual const std::map<std::string, TensorInfo>& tensors() const = 0;
  // A CPU tensor; may share memory with the mapped file as long as this object lives, so callers
  // that keep it clone it. Throws std::out_of_range for an unknown name.
  virtual at::Tensor Get(const std::string& name) const = 0;
  // The tensor has been read and is not needed soon: its pages may leave this process. It stays
  // readable.
  virtual void Release(const std::string& name) const {}
  // For a file whose bytes are still being checked (OpenOptions::in_memory): returns when all of
  // its version are. Get gives only what was found right; what is made of it must not be used
  // before this has returned. Throws std::runtime_error saying what is wrong; OpenStopped.
  virtual void Finish() const {}

  // By content: safetensors header, or the zip of torch.save. Pickles are read by a small
  // interpreter that knows tensors, dictionaries and numbers and refuses everything else: nothing
  // in a file is ever executed. Throws std::runtime_error naming the file and what is wrong.
  static std::unique_ptr<TensorFile> Open(const std::filesystem::path& path);
  static std::unique_ptr<TensorFile> Open(std::shared_ptr<const MappedFile> file);
};

// By name in a folder.
using TensorFiles = std::map<std::string, std::shared_ptr<const TensorFile>>;

// All tensor files of a folder as one: a *.index.json's shards, else model.safetensors, else
// pytorch_model.bin. Throws if a listed shard or tensor is missing. `opened`: those that are open
// already.
std::shared_ptr<const TensorFile> OpenTensorFolder(const std::filesystem::path& folder,
                                                   const TensorFiles& opened = {});

// Writes a safetensors file: temporary name, fsync, rename.
void SaveSafetensors(const std::filesystem::path& path,
                     const std::map<std::string, at::Tensor>& tensors,
                     const std::map<std::string, std::string>& metadata = {});
// The same of tensors that need not be in memory together: `get` is asked for each once, which has
// to be what `infos` says.
void StreamSafetensors(const std::filesystem::path& path,
                       const std::map<std::string, TensorInfo>& infos,
                       const std::function<at::Tensor(const std::string&)>& get,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace llava
