#pragma once

// Pillow's convolution of 8-bit pictures: weights of 22 fractional bits, sums of 32 bits, rounded
// and clipped to 8 bits after each of the two passes. Exact, so every way to compute it gives the
// same bits.

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llava {

using Colour = std::array<uint8_t, 3>;

// A picture's extent along one axis, on a line of `length` pixels that may be longer than it.
struct Axis {
  int length;
  int offset;   // first pixel of the picture
  int picture;  // pixels of the picture
};

// What one position of the result takes: the picture's pixels [first, first + weights.size()), and
// all that falls on the margin, which has one colour.
struct Taps {
  int first = 0;
  std::vector<int32_t> weights = {};
  int32_t margin = 0;
};

// Of Pillow's bicubic filter (a = -0.5, its support widened when shrinking): positions [begin,
// begin + count) of an axis drawn with `out` pixels.
std::vector<Taps> BicubicTaps(const Axis& axis, int out, int begin, int count);

enum class Simd : uint8_t { kNone, kAvx2 };
Simd BestSimd();  // of this processor

// RGB rows [height][width], without gaps, to [height][taps.size()].
struct RgbRows {
  const uint8_t* data;
  int width, height;
};
std::vector<uint8_t> ResampleRows(const RgbRows& rows, const std::vector<Taps>& taps,
                                  const Colour& margin, Simd simd = BestSimd());

// RGB rows of which the first stands for position `first_row` of the taps, to [taps.size()][width].
std::vector<uint8_t> ResampleColumns(const RgbRows& rows, int first_row,
                                     const std::vector<Taps>& taps, const Colour& margin,
                                     Simd simd = BestSimd());

}  // namespace llava
