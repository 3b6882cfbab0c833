#pragma once

// Vectors of 16 floats by the compiler's own vector types: one source for every instruction set.
// The sets must not share a symbol, so all is static, in the namespace LLAVA_ISA, and nothing of
// the standard library is used that a linker could merge.

#include <cstdint>
#include <cstring>

#include "model/ops/cpu/kernels.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace llava::ops::cpu::LLAVA_ISA {

constexpr int64_t kLanes = 16;

using Vector = float __attribute__((vector_size(64)));
using IntVector = int32_t __attribute__((vector_size(64)));
using BitVector = uint32_t __attribute__((vector_size(64)));
using HalfVector = uint16_t __attribute__((vector_size(32)));

struct BFloat16 {
  uint16_t bits;
};

[[gnu::always_inline]] static inline Vector Load(const float* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
[[gnu::always_inline]] static inline void Store(float* to, Vector v) {
  __builtin_memcpy(to, &v, sizeof(v));
}
[[gnu::always_inline]] static inline Vector Load(const BFloat16* from) {
  HalfVector half;
  __builtin_memcpy(&half, from, sizeof(half));
  return reinterpret_cast<Vector>(__builtin_convertvector(half, BitVector) << 16);
}
// To the nearest, ties to even; every NaN stays one.
[[gnu::always_inline]] static inline void Store(BFloat16* to, Vector v) {
  BitVector bits = reinterpret_cast<BitVector>(v);
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  bits = reinterpret_cast<BitVector>(v != v) ? bits * 0 + 0x7FC0 : bits;
  const HalfVector half = __builtin_convertvector(bits, HalfVector);
  __builtin_memcpy(to, &half, sizeof(half));
}

// As Store, by the instruction for it where there is one.
[[gnu::always_inline]] static inline void StoreRounded(float* to, Vector v) { Store(to, v); }
[[gnu::always_inline]] static inline void StoreRounded(BFloat16* to, Vector v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(to, &half, sizeof(half));
#else
  Store(to, v);
#endif
}

// The first `count` lanes, at most kLanes; the others are 0 and stay unread and unwritten.
template <typename T>
[[gnu::always_inline]] static inline Vector LoadPart(const T* from, int64_t count) {
  T whole[kLanes] = {};
  __builtin_memcpy(whole, from, count * sizeof(T));
  return Load(whole);
}
template <typename T>
[[gnu::always_inline]] static inline void StorePart(T* to, Vector v, int64_t count) {
  T whole[kLanes];
  Store(whole, v);
  __builtin_memcpy(to, whole, count * sizeof(T));
}

[[gnu::always_inline]] static inline Vector Max(Vector a, Vector b) { return a > b ? a : b; }

// The order of lanes.
constexpr IntVector kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// op over all lanes, halves with halves.
template <typename V, typename Op>
[[gnu::always_inline]] static inline auto Reduce(V v, const Op& op) {
#ifdef __AVX512F__
  for (int step = kLanes / 2; step > 0; step /= 2) {
    v = op(v, __builtin_shuffle(v, (kLane + step) & (static_cast<int32_t>(kLanes) - 1)));
  }
  return v[0];
#else
  decltype(v[0] + v[0]) lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lanes[i] = op(lanes[i], lanes[i + width]);
  }
  return lanes[0];
#endif
}
[[gnu::always_inline]] static inline float Sum(Vector v) {
  return Reduce(v, [](auto a, auto b) { return a + b; });
}
[[gnu::always_inline]] static inline float Largest(Vector v) {
  return Reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

// a * b + c; with AVX-512 rounded once, whatever the compiler may do elsewhere.
[[gnu::always_inline]] static inline Vector Fused(Vector a, Vector b, Vector c) {
#ifdef __AVX512F__
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

// To about 1 in the last place (Cephes' expf); 0 below -87, the largest finite value above 88.
[[gnu::always_inline]] static inline Vector Exp(Vector x) {
  const Vector zero = {};
  const Vector low = zero - 87.0f, high = zero + 88.0f;
  const auto tiny = x < low;
  x = tiny ? low : x;
  x = x > high ? high : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector n = Fused(x, zero + 1.44269504f, zero + kRound) - kRound;
  Vector r = Fused(n, zero - 0.693359375f, x);
  r = Fused(n, zero + 2.12194440e-4f, r);
  Vector p = zero + 1.9875691500e-4f;
  p = Fused(p, r, zero + 1.3981999507e-3f);
  p = Fused(p, r, zero + 8.3334519073e-3f);
  p = Fused(p, r, zero + 4.1665795894e-2f);
  p = Fused(p, r, zero + 1.6666665459e-1f);
  p = Fused(p, r, zero + 5.0000001201e-1f);
  p = Fused(p, r * r, r) + 1.0f;
  const IntVector exponent = (__builtin_convertvector(n, IntVector) + 127) << 23;
  p = p * reinterpret_cast<Vector>(exponent);
  return tiny ? zero : p;
}

}  // namespace llava::ops::cpu::LLAVA_ISA
