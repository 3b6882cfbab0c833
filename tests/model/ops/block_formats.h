#pragma once

// llama.cpp's formats q8_0 and q4_0 (blocks of 32 with a scale in half precision), quantised as
// described there: what a block is afterwards.

#include <algorithm>
#include <cmath>

namespace llava::ops::cpu {

// To the nearest number with 11 bits: scales here are neither tiny nor huge.
inline float RoundedToHalf(float value) {
  int exponent;
  const float mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(mantissa * 2048) / 2048, exponent);
}

inline void Q8_0(float* block) {
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::abs(block[i]));
  const float d = most / 127, inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < 32; ++i) block[i] = std::round(block[i] * inverse) * RoundedToHalf(d);
}

inline void Q4_0(float* block) {
  float most = 0, at = 0;
  for (int i = 0; i < 32; ++i) {
    if (std::abs(block[i]) > most) {
      most = std::abs(block[i]);
      at = block[i];
    }
  }
  const float d = at / -8, inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < 32; ++i) {
    const float q = std::min(15.0f, std::floor(block[i] * inverse + 8.5f));
    block[i] = (q - 8) * RoundedToHalf(d);
  }
}

}  // namespace llava::ops::cpu
