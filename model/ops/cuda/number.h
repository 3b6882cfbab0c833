#pragma once

// Numbers and short vectors of them, in device code and in the host's emulation of it.

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#define LLAVA_DEVICE __device__ __forceinline__
#define LLAVA_UNROLL _Pragma("unroll")
#else
#include <cmath>
#include <utility>
#define LLAVA_DEVICE inline
#define LLAVA_UNROLL
#endif

namespace llava::cuda {

struct BFloat16 {
  uint16_t bits;
};

LLAVA_DEVICE uint32_t BitsOf(float x) {
#if defined(__CUDACC__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}
LLAVA_DEVICE float FloatOf(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

LLAVA_DEVICE float ToFloat(float x) { return x; }
LLAVA_DEVICE float ToFloat(BFloat16 x) { return FloatOf(static_cast<uint32_t>(x.bits) << 16); }
// Of two bfloat16 in a word.
LLAVA_DEVICE float LowFloat(uint32_t pair) { return FloatOf(pair << 16); }
LLAVA_DEVICE float HighFloat(uint32_t pair) { return FloatOf(pair & 0xffff0000u); }

// Rounds to nearest, ties to even.
template <class T>
LLAVA_DEVICE T FromFloat(float x);
template <>
LLAVA_DEVICE float FromFloat<float>(float x) {
  return x;
}
template <>
LLAVA_DEVICE BFloat16 FromFloat<BFloat16>(float x) {
#if defined(__CUDACC__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  if (x != x) return {0x7fff};
  const uint32_t wide = BitsOf(x);
  return {static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
#endif
}

LLAVA_DEVICE float Exp2(float x) { return exp2f(x); }
LLAVA_DEVICE double Exp(double x) { return exp(x); }

// Adds to what a block shares; returns what was there.
LLAVA_DEVICE uint32_t AtomicAdd(uint32_t& to, uint32_t amount) {
#if defined(__CUDACC__)
  return atomicAdd(&to, amount);
#else
  return std::exchange(to, to + amount);
#endif
}

// Four of the eight bytes of `high` and `low`, chosen by the four hexadecimal digits of `which`;
// the last digit chooses the lowest byte.
LLAVA_DEVICE uint32_t Bytes(uint32_t low, uint32_t high, uint32_t which) {
#if defined(__CUDACC__)
  return __byte_perm(low, high, which);
#else
  const uint64_t all = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(all >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
#endif
}

// x & mask | bits, in one instruction (which the compiler makes two of for want of a register).
template <uint32_t mask, uint32_t bits>
LLAVA_DEVICE uint32_t MaskAndSet(uint32_t x) {
#if defined(__CUDACC__)
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(x), "n"(mask), "n"(bits));
  return result;
#else
  return (x & mask) | bits;
#endif
}

// The sum of two pairs of bfloat16 in a word each.
LLAVA_DEVICE uint32_t AddPairs(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
#else
  const uint32_t low = FromFloat<BFloat16>(LowFloat(a) + LowFloat(b)).bits;
  const uint32_t high = FromFloat<BFloat16>(HighFloat(a) + HighFloat(b)).bits;
  return high << 16 | low;
#endif
}

// What an array does, usable in device code.
template <class X, int N>
struct Array {
  X values[N];
  LLAVA_DEVICE X& operator[](int i) { return values[i]; }
  LLAVA_DEVICE const X& operator[](int i) const { return values[i]; }
};

// N values that lie together, loaded and stored 16 bytes at a time where they are that many.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector : Array<T, N> {};

template <int N, class T>
LLAVA_DEVICE Vector<T, N> Load(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <class T, int N>
LLAVA_DEVICE void Store(T* to, const Vector<T, N>& value) {
  *reinterpret_cast<Vector<T, N>*>(to) = value;
}

// Load of what is read once and was written by earlier kernels only: leaves the first cache to
// others.
template <int N, class T>
LLAVA_DEVICE Vector<T, N> LoadOnce(const T* from) {
#if defined(__CUDACC__)
  if constexpr (sizeof(T) * N % 16 == 0) {
    union Bits {
      uint4 words[sizeof(T) * N / 16];
      Vector<T, N> vector;
    } bits;
    LLAVA_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(T) * N / 16); ++i) {
      uint4& w = bits.words[i];
      // Volatile: stays in front of a wait that it was written in front of.
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                   : "l"(reinterpret_cast<const uint4*>(from) + i));
    }
    return bits.vector;
  }
#endif
  return Load<N>(from);
}

// Asks for a line of 128 bytes that will be read soon.
LLAVA_DEVICE void PrefetchLine(const void* from) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#else
  (void)*static_cast<const volatile char*>(from);
#endif
}

}  // namespace llava::cuda
