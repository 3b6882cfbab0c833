#pragma once

// Dot products of weights, as they lie in a panel, with activations that all lanes share: what an
// instruction set has for them. Lanes are rows of W. As in simd.h, nothing here is shared by two
// instruction sets.

#include <cstdint>

#include "model/ops/cpu/gemm.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace llava::ops::cpu::LLAVA_ISA {

#if defined(__AVX512F__)
constexpr int kColumns = 16;  // of a vector
constexpr int kMostRows = 8;  // of x at a time, so that their sums stay in registers
#elif defined(__AVX2__)
constexpr int kColumns = 8;
constexpr int kMostRows = 4;
#else
constexpr int kColumns = 4;
constexpr int kMostRows = 1;
#endif
constexpr int kVectors = kPanel / kColumns;
// Vectors of a panel that `rows` of x go through at a time: all while their sums fit into
// registers, so that weights are read in order.
constexpr int Together(int rows) {
  return rows == 1 || rows * kVectors <= 2 * kMostRows ? kVectors : 2;
}

using Floats = float __attribute__((vector_size(4 * kColumns)));
using Ints = int32_t __attribute__((vector_size(4 * kColumns)));
using Words = uint32_t __attribute__((vector_size(4 * kColumns)));

template <typename V>
[[gnu::always_inline]] static inline V LoadAs(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
template <typename V>
[[gnu::always_inline]] static inline void StoreAs(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}
[[gnu::always_inline]] static inline int32_t LoadWord(const void* from) {
  int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return word;
}

// a * b + sum, rounded once where the instruction set can.
[[gnu::always_inline]] static inline Floats MultiplyAdd(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return sum + a * b;
#endif
}

// --- four bytes: weights with their offset, signed activations; exact ---------------------------

#if defined(__AVX512VNNI__)

constexpr bool kOffsetTaken = false;  // from whole bytes, so that no correction is due
struct WeightQuads {
  Words all;
};
using NibbleQuads = WeightQuads;
struct Quad {
  Ints all;
};
[[gnu::always_inline]] static inline WeightQuads Split(Words w) { return {w}; }
[[gnu::always_inline]] static inline NibbleQuads SplitNibbles(Words w) { return {w}; }
[[gnu::always_inline]] static inline Quad Spread(const void* x) { return {Ints{} + LoadWord(x)}; }
[[gnu::always_inline]] static inline Ints AddDot(Ints sum, WeightQuads w, Quad x) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w.all, (__m512i)x.all);
}

#elif defined(__AVX2__) && !defined(__AVX512F__)

// The instruction for products of bytes takes unsigned ones times signed ones and adds two products
// in 16 bits: at most 2 * 128 * 127, or 2 * 15 * 127, which fit.
constexpr bool kOffsetTaken = true;
struct WeightQuads {
  __m256i size, sign;
};
struct NibbleQuads {
  __m256i all;
};
struct Quad {
  __m256i all;
};
[[gnu::always_inline]] static inline WeightQuads Split(Words w) {
  const __m256i whole = (__m256i)(w ^ 0x80808080);
  return {_mm256_abs_epi8(whole), whole};
}
[[gnu::always_inline]] static inline NibbleQuads SplitNibbles(Words w) { return {(__m256i)w}; }
[[gnu::always_inline]] static inline Quad Spread(const void* x) {
  return {_mm256_set1_epi32(LoadWord(x))};
}
[[gnu::always_inline]] static inline Ints AddHalves(Ints sum, __m256i halves) {
  return sum + (Ints)_mm256_madd_epi16(halves, _mm256_set1_epi16(1));
}
[[gnu::always_inline]] static inline Ints AddDot(Ints sum, WeightQuads w, Quad x) {
  return AddHalves(sum, _mm256_maddubs_epi16(w.size, _mm256_sign_epi8(x.all, w.sign)));
}
[[gnu::always_inline]] static inline Ints AddDot(Ints sum, NibbleQuads w, Quad x) {
  return AddHalves(sum, _mm256_maddubs_epi16(w.all, x.all));
}

#else

constexpr bool kOffsetTaken = false;
// Of 16-bit halves, the products' sum.
[[gnu::always_inline]] static inline Ints DotHalves(Ints a, Ints b) {
#if defined(__AVX512BW__)
  return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__SSE2__)
  return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// Bytes 0 and 2, and 1 and 3, as halves.
struct WeightQuads {
  Ints even, odd;
};
using NibbleQuads = WeightQuads;
struct Quad {
  Ints even, odd;
};
[[gnu::always_inline]] static inline WeightQuads Split(Words w) {
  return {(Ints)(w & 0x00FF00FF), (Ints)(w >> 8 & 0x00FF00FF)};
}
[[gnu::always_inline]] static inline NibbleQuads SplitNibbles(Words w) { return Split(w); }
[[gnu::always_inline]] static inline Quad Spread(const void* x) {
  using Halves = int16_t __attribute__((vector_size(4 * kColumns)));
  const Halves all = (Halves)(Ints{} + LoadWord(x));
  return {(Ints)((Halves)(all << 8) >> 8), (Ints)(all >> 8)};
}
[[gnu::always_inline]] static inline Ints AddDot(Ints sum, WeightQuads w, Quad x) {
  return sum + DotHalves(w.even, x.even) + DotHalves(w.odd, x.odd);
}

#endif

// --- pairs of bfloat16 -------------------------------------------------------------------------

#if defined(__AVX512BF16__)

struct WeightPairs {
  Words all;
};
struct Pair {
  Words all;
};
[[gnu::always_inline]] static inline WeightPairs SplitPairs(Words w) { return {w}; }
[[gnu::always_inline]] static inline Pair SpreadPair(const void* x) {
  return {Words{} + static_cast<uint32_t>(LoadWord(x))};
}
[[gnu::always_inline]] static inline Floats AddDot(Floats sum, WeightPairs w, Pair x) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w.all, (__m512bh)x.all);
}

#else

struct WeightPairs {
  Floats even, odd;
};
struct Pair {
  Floats even, odd;
};
[[gnu::always_inline]] static inline WeightPairs SplitPairs(Words w) {
  return {(Floats)(w << 16), (Floats)(w & 0xFFFF0000)};
}
[[gnu::always_inline]] static inline Pair SpreadPair(const void* x) {
  const Words pair = Words{} + static_cast<uint32_t>(LoadWord(x));
  return {(Floats)(pair << 16), (Floats)(pair & 0xFFFF0000)};
}
[[gnu::always_inline]] static inline Floats AddDot(Floats sum, WeightPairs w, Pair x) {
  return MultiplyAdd(w.odd, x.odd, MultiplyAdd(w.even, x.even, sum));
}

#endif

// --- scales ------------------------------------------------------------------------------------

// Vector `v` of a block's 32 scales.
[[gnu::always_inline]] static inline Floats LoadScales(const uint8_t* block, int v) {
  using Halves = uint16_t __attribute__((vector_size(2 * kColumns)));
  const Halves bits = LoadAs<Halves>(block + v * sizeof(Halves));
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

// --- memory ------------------------------------------------------------------------------------

// Weights are fetched into the second cache so many bytes before they are used. Processors with AMX
// fetch ahead by themselves only within a page of 4 KiB, which leaves a quarter of the memory's
// speed unused; Zen 4 reads slower when told what it knows.
#if defined(__AMX_TILE__)
constexpr int64_t kAhead = 4096;
#else
constexpr int64_t kAhead = 0;
#endif

[[gnu::always_inline]] static inline void FetchAhead(const uint8_t* weights, int64_t bytes) {
  if constexpr (kAhead > 0) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(weights + i, 0, 2);
  }
}

// Into the first cache, for soon.
[[gnu::always_inline]] static inline void Fetch(const uint8_t* weights, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(weights + i, 0, 3);
}

}  // namespace llava::ops::cpu::LLAVA_ISA
