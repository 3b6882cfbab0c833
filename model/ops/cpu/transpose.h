#pragma once

// 16 x 16 values. As in simd.h, nothing here is shared by two instruction sets.

#include "model/ops/cpu/simd.h"

namespace llava::ops::cpu::LLAVA_ISA {

// In each pair of vectors kStep apart, changes the upper lanes of every 2 kStep in the first with
// the lower ones of the second.
template <int kStep>
[[gnu::always_inline]] static inline void Exchange(Vector (&v)[kLanes]) {
  constexpr IntVector kUpper = (kLane & kStep) != 0;
  constexpr IntVector kFirst = kUpper ? kLane - kStep + 16 : kLane;
  constexpr IntVector kSecond = kUpper ? kLane + 16 : kLane + kStep;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Vector a = v[i], b = v[i + kStep];
    v[i] = __builtin_shuffle(a, b, kFirst);
    v[i + kStep] = __builtin_shuffle(a, b, kSecond);
  }
}

// Rows become columns.
[[gnu::always_inline]] static inline void Transpose(Vector (&v)[kLanes]) {
#ifdef __AVX512F__
  Exchange<1>(v);
  Exchange<2>(v);
  Exchange<4>(v);
  Exchange<8>(v);
#else
  float from[kLanes][kLanes], to[kLanes][kLanes];
  __builtin_memcpy(from, v, sizeof(from));
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) to[j][i] = from[i][j];
  }
  __builtin_memcpy(v, to, sizeof(to));
#endif
}

}  // namespace llava::ops::cpu::LLAVA_ISA
