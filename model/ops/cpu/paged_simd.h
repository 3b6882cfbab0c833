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

// Rows of one head (tokens times group), and which keys of a range they see.
struct HeadRows {
  int64_t position, group;  // of the first token, counted from the range's first key
  int64_t visible(int64_t row) const {
    const int64_t count = position + row / group + 1;
    return count < kRangeTokens ? count : kRangeTokens;
  }
};

struct Softmax {
  float peak, total;
};

// The first `visible` scores of a row, times the scales of each block's keys if there are any,
// become weights of values: calls put(i, weights i .. i + 16), 0 for what is not seen.
template <typename Put>
[[gnu::always_inline]] static inline Softmax Weigh(int64_t visible, const float* const* key_scales,
                                                   float* scores, const Put& put) {
  const Vector never = Vector{} - __builtin_inff();
  Vector most = never;
  for (int64_t i = 0; i < visible; i += kLanes) {
    Vector v = Load(scores + i);
    if (key_scales != nullptr) v *= Load(key_scales[i / kLanes]);
    if (i + kLanes > visible) v = kLane < static_cast<int32_t>(visible - i) ? v : never;
    Store(scores + i, v);
    most = Max(most, v);
  }
  const float peak = Largest(most);
  Vector total = {};
  for (int64_t i = 0; i < visible; i += kLanes) {
    const Vector p = Exp(Load(scores + i) - peak);
    total += p;
    put(i, p);
  }
  return {peak, Sum(total)};
}

// Merges the sums of a later range into those before it.
[[gnu::always_inline]] static inline void Merge(float* sums, const float* part, int64_t width) {
  const float before = sums[width], after = part[width];
  const float peak = before > after ? before : after;
  Vector change = {};
  change[0] = before - peak;
  change[1] = after - peak;
  const Vector factors = Exp(change);
  const float a = factors[0], b = factors[1];
  for (int64_t i = 0; i < width; i += kLanes) {
    Store(sums + i, Load(sums + i) * a + Load(part + i) * b);
  }
  sums[width] = peak;
  sums[width + 1] = sums[width + 1] * a + part[width + 1] * b;
}

}  // namespace llava::ops::cpu::LLAVA_ISA
