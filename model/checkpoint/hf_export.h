#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"

namespace llava {

struct HfExportOptions {
  std::optional<at::ScalarType> dtype = {};  // of all tensors; none: as they are stored
  // Called after each tensor; false: give up.
  std::function<bool(uint64_t done, uint64_t total)> step = {};
  uint64_t shard_bytes = 5'000'000'000;  // of a file at most, unless one tensor is larger
};

// Writes a model with its tower as a folder in llava-hf's layout, which transformers loads as
// LlavaForConditionalGeneration (anyres: LlavaNext..): atomically, into a folder that must not be
// there, one tensor in memory at a time. Rows that the tables lack for llava-hf's two tokens are
// the mean of all others, so that none of them is ever the likeliest. False if `step` said so;
// then, as after an error, nothing is left. Throws std::runtime_error for what llava-hf cannot hold
// (projectors other than mlp2x_gelu, packed decoders), values beyond `dtype`, a folder that exists,
// and if writing fails.
bool ExportHf(const LanguageCheckpoint& language, const TowerCheckpoint& tower,
              const std::filesystem::path& folder, const HfExportOptions& options = {});

}  // namespace llava
