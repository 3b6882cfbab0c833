#pragma once

// Features of pictures on disk, so that later runs and epochs need no tower.

#include <array>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include <ATen/core/Tensor.h>

#include "model/digest/sha256.h"

namespace llava {

// A file of tensors of one shape, named by digests of their pictures or tiles. Format: "LLVAFEAT",
// the header's length (u32, little-endian), the header (says what made the tensors, and their
// shape); then per tensor its name (32 bytes), the first 8 bytes of the SHA-256 of the values, the
// values. Thread-safe; one process at a time.
class FeatureFile {
 public:
  // Makes the file if there is none. `origin`: whatever the values depend on beside the picture.
  // A tensor cut off at the end (a run that was killed) is dropped. Throws std::runtime_error if
  // the file cannot be opened, is in use, or holds features of another origin or shape.
  FeatureFile(const std::filesystem::path& path, const std::string& origin, at::IntArrayRef shape,
              at::ScalarType dtype);
  ~FeatureFile();
  FeatureFile(const FeatureFile&) = delete;
  FeatureFile& operator=(const FeatureFile&) = delete;

  // Nothing if it is not there or damaged.
  std::optional<at::Tensor> Find(const Sha256Digest& picture) const;
  // Once the disk is full, nothing more is added.
  void Add(const Sha256Digest& picture, const at::Tensor& features);

 private:
  void ReadOrWriteHeader(const std::string& origin);
  void ReadNames();

  std::filesystem::path path_;
  std::vector<int64_t> shape_;
  at::ScalarType dtype_;
  size_t bytes_;  // of the values of a tensor
  int file_ = -1;
  mutable std::mutex mutex_;  // guards what follows
  std::unordered_map<std::string, uint64_t> offsets_;
  uint64_t end_ = 0;
  bool full_ = false;
};

}  // namespace llava
