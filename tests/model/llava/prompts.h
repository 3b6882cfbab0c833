#pragma once

// What tests ask about whole prompts.

#include <cstdint>
#include <span>
#include <vector>

#include "model/llava/llava.h"

namespace llava {

// Once every kImageToken has become its image tokens.
inline int64_t ExpandedLength(const Llava& model, std::span<const int32_t> ids,
                              std::span<const Resolution> sizes = {}) {
  const std::vector<int64_t> values(ids.begin(), ids.end());
  return static_cast<int64_t>(model.Expand(ids, values, 0, sizes).size());
}

}  // namespace llava
