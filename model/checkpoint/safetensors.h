#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "model/checkpoint/mapped_tensor.h"

namespace llava {

// A safetensors file: 8 bytes header length, JSON header, tensor bytes without gap or overlap.

// Whether a file begins like one: a plausible length, then '{'.
bool IsSafetensors(std::span<const uint8_t> bytes);
// Where its tensors lie, told by its beginning. `head`: at least the whole header (see
// SafetensorsHeaderBytes) of a file of `file_bytes`. Checks all of it. Throws std::runtime_error
// naming file and tensor.
MappedTensors ParseSafetensorsHeader(std::span<const uint8_t> head, uint64_t file_bytes,
                                     const std::string& path);
// Bytes before the tensors, told by the first 8. 8 if there are not so many, or if what they say is
// more than a header may have.
uint64_t SafetensorsHeaderBytes(std::span<const uint8_t> head);

}  // namespace llava
