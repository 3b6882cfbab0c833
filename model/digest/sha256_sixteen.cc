// SHA-256 of 16 messages, one in each element of AVX-512's vectors. The rounds of one message wait
// for each other, so that the SHA instructions, which do one, are slower than this by half.
#include "model/digest/sha256_rounds.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace llava {

#if defined(__x86_64__)

namespace {

#define LLAVA_AVX512 __attribute__((target("avx512f,avx512bw")))

// Truth tables of vpternlogd.
constexpr int kXor = 0x96, kChoose = 0xca, kMajority = 0xe8;

// Words [message][i] become [i][message].
LLAVA_AVX512 inline void Transpose(__m512i* words) {
  __m512i pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(words[i], words[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(words[i], words[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  // Part q of quads[4 g + j]: words 4 q + j of the messages from 4 g on.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low0 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x44);
    const __m512i high0 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xee);
    const __m512i low8 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x44);
    const __m512i high8 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xee);
    words[j] = _mm512_shuffle_i32x4(low0, low8, 0x88);
    words[4 + j] = _mm512_shuffle_i32x4(low0, low8, 0xdd);
    words[8 + j] = _mm512_shuffle_i32x4(high0, high8, 0x88);
    words[12 + j] = _mm512_shuffle_i32x4(high0, high8, 0xdd);
  }
}

LLAVA_AVX512 inline __m512i Add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }

LLAVA_AVX512 inline __m512i Xor(__m512i a, __m512i b, __m512i c) {
  return _mm512_ternarylogic_epi32(a, b, c, kXor);
}

LLAVA_AVX512 inline __m512i SmallSigma0(__m512i x) {
  return Xor(_mm512_ror_epi32(x, 7), _mm512_ror_epi32(x, 18), _mm512_srli_epi32(x, 3));
}
LLAVA_AVX512 inline __m512i SmallSigma1(__m512i x) {
  return Xor(_mm512_ror_epi32(x, 17), _mm512_ror_epi32(x, 19), _mm512_srli_epi32(x, 10));
}
LLAVA_AVX512 inline __m512i Sigma0(__m512i x) {
  return Xor(_mm512_ror_epi32(x, 2), _mm512_ror_epi32(x, 13), _mm512_ror_epi32(x, 22));
}
LLAVA_AVX512 inline __m512i Sigma1(__m512i x) {
  return Xor(_mm512_ror_epi32(x, 6), _mm512_ror_epi32(x, 11), _mm512_ror_epi32(x, 25));
}

// One block of each message; `state`: a to h.
LLAVA_AVX512 inline void Block(__m512i* state, const uint8_t* const* data, size_t offset) {
  const __m512i big_endian =
      _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
  __m512i w[16];  // the last words of the message schedule
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    w[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(data[i] + offset), big_endian);
  }
  Transpose(w);
  __m512i v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = state[i];
#pragma GCC unroll 64
  for (int i = 0; i < 64; ++i) {
    if (i >= 16) {
      w[i % 16] = Add(Add(w[i % 16], SmallSigma0(w[(i + 1) % 16])),
                      Add(w[(i + 9) % 16], SmallSigma1(w[(i + 14) % 16])));
    }
    // Instead of moving a to b and so on, their places move.
    const __m512i a = v[(64 - i) % 8], b = v[(65 - i) % 8], c = v[(66 - i) % 8];
    const __m512i e = v[(68 - i) % 8], f = v[(69 - i) % 8], g = v[(70 - i) % 8];
    __m512i &d = v[(67 - i) % 8], &h = v[(71 - i) % 8];
    const __m512i round = _mm512_set1_epi32(static_cast<int>(kSha256Rounds[i]));
    const __m512i t1 = Add(Add(h, Add(w[i % 16], round)),
                           Add(Sigma1(e), _mm512_ternarylogic_epi32(e, f, g, kChoose)));
    d = Add(d, t1);
    h = Add(t1, Add(Sigma0(a), _mm512_ternarylogic_epi32(a, b, c, kMajority)));
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) state[i] = Add(state[i], v[i]);
}

}  // namespace

bool HaveCompressSixteen() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

LLAVA_AVX512 void CompressSixteen(uint32_t* const* states, const uint8_t* const* data,
                                  size_t blocks) {
  alignas(64) uint32_t words[8][16];
  __m512i state[8];
  for (int i = 0; i < 8; ++i) {
    for (int message = 0; message < 16; ++message) words[i][message] = states[message][i];
    state[i] = _mm512_load_si512(words[i]);
  }
  for (size_t block = 0; block < blocks; ++block) Block(state, data, block * 64);
  for (int i = 0; i < 8; ++i) {
    _mm512_store_si512(words[i], state[i]);
    for (int message = 0; message < 16; ++message) states[message][i] = words[i][message];
  }
}

#else

bool HaveCompressSixteen() { return false; }

void CompressSixteen(uint32_t* const*, const uint8_t* const*, size_t) {
  throw std::logic_error("no instructions for 16 hashes at once");
}

#endif

}  // namespace llava
