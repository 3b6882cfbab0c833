#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "model/checkpoint/mapped_tensor.h"

namespace llava {

// What torch.save writes (since PyTorch 1.6) for a dictionary of tensors: a zip archive of stored
// entries with a pickle and one entry per storage.

// Whether a file begins like a zip archive.
bool IsTorchArchive(std::span<const uint8_t> bytes);
// Where its tensors lie, by the directory and the pickle; entries of the dictionary that are no
// tensors are left out. Throws std::runtime_error naming file and tensor.
MappedTensors ReadTorchArchive(std::span<const uint8_t> bytes, const std::string& path);

}  // namespace llava
