#pragma once

// What the two sources of paged attention share. As in simd.h, nothing here is shared by two
// instruction sets.

#include "model/ops/cpu/paged.h"
#include "model/ops/cpu/simd.h"

namespace llava::ops::cpu::LLAVA_ISA {

[[gnu::always_inline]] static inline int64_t Padded(int64_t size) {
  return (size + kLanes - 1) / kLanes * kLanes;
}

// Where the parts of one head lie in a block.
struct HeadParts {
  uint8_t* keys;
  uint8_t* values;
  float* key_scales;
  float* value_scales;
};
[[gnu::always_inline]] static inline HeadParts PartsOf(const PagedBlocks& blocks, int64_t index,
                                                       int64_t head) {
  const KvLayout& layout = *blocks.layout;
  uint8_t* const keys =
      blocks.layer + blocks.table[index] * blocks.stride + head * layout.head_bytes;
  const int64_t element = layout.element == KvElement::kFloat      ? 4
                          : layout.element == KvElement::kBFloat16 ? 2
                                                                   : 1;
  const int64_t bytes = kBlockTokens * layout.head_dim * element;
  float* const scales = reinterpret_cast<float*>(keys + 2 * bytes);
  return {keys, keys + bytes, scales, scales + kBlockTokens};
}

// Turns the pairs (i, i + half) by the angles of a row, then scales.
[[gnu::always_inline]] static inline void Turn(const float* from, const float* cosine,
                                               const float* sine, int64_t half, float scale,
                                               float* to) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[i], b = from[i + half];
    to[i] = (a * cosine[i] - b * sine[i]) * scale;
    to[i + half] = (b * cosine[i] + a * sine[i]) * scale;
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
