#include "model/image/resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace llava {
namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;  // of a weight: 8 bits of value, 2 of overshoot and sign
constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);
constexpr double kSupport = 2.0;  // of the cubic kernel, in source pixels when enlarging

double Cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

uint8_t ToByte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

void PortableRow(const uint8_t* row, const std::vector<Taps>& taps, const Colour& margin,
                 uint8_t* out) {
  for (const Taps& one : taps) {
    int32_t sum[3];
    for (int c = 0; c < 3; ++c) sum[c] = kHalf + margin[c] * one.margin;
    const uint8_t* pixel = row + size_t{3} * one.first;
    for (const int32_t weight : one.weights) {
      for (int c = 0; c < 3; ++c) sum[c] += pixel[c] * weight;
      pixel += 3;
    }
    for (const int32_t value : sum) *out++ = ToByte(value);
  }
}

// `from`: the row of the first tap.
void PortableColumns(const uint8_t* from, size_t line, const Taps& taps, const Colour& margin,
                     std::vector<int32_t>& sums, uint8_t* out) {
  sums.resize(line);
  for (size_t i = 0; i < line; ++i) sums[i] = kHalf + margin[i % 3] * taps.margin;
  for (const int32_t weight : taps.weights) {
    for (size_t i = 0; i < line; ++i) sums[i] += from[i] * weight;
    from += line;
  }
  std::transform(sums.begin(), sums.end(), out, ToByte);
}

#if defined(__x86_64__)

// A weight is high * 2^12 + low, each of 16 bits, so that products of two taps are one instruction;
// sums of the two parts may wrap around, their combination does not.
constexpr int kLowBits = 12;
int16_t High(int32_t weight) { return static_cast<int16_t>(weight >> kLowBits); }
int16_t Low(int32_t weight) { return static_cast<int16_t>(weight & ((1 << kLowBits) - 1)); }

constexpr int kTapsAtOnce = 4, kBytesAtOnce = 3 * kTapsAtOnce;

// Weights of four taps, for R, G, B and nothing of the first two, then of the others.
struct alignas(32) Quad {
  int16_t high[16], low[16];
};
struct Position {
  size_t byte;         // in the row
  size_t first, last;  // quads
  alignas(16) int32_t start[4];
};

struct QuadTaps {
  std::vector<Quad> quads;
  std::vector<Position> positions;
  size_t reach = 0;  // bytes of a row that are read
};

QuadTaps ToQuads(const std::vector<Taps>& taps, const Colour& margin) {
  QuadTaps result;
  for (const Taps& one : taps) {
    Position position{size_t{3} * one.first, result.quads.size(), 0, {}};
    for (int c = 0; c < 3; ++c) position.start[c] = kHalf + margin[c] * one.margin;
    for (size_t t = 0; t < one.weights.size(); t += kTapsAtOnce) {
      Quad quad = {};
      for (size_t i = 0; i < kTapsAtOnce && t + i < one.weights.size(); ++i) {
        for (size_t c = 0; c < 3; ++c) {
          const size_t at = i / 2 * 8 + c * 2 + i % 2;
          quad.high[at] = High(one.weights[t + i]);
          quad.low[at] = Low(one.weights[t + i]);
        }
      }
      result.quads.push_back(quad);
    }
    position.last = result.quads.size();
    // A load takes 16 bytes, of which four belong to the next quad.
    const size_t reads = (position.last - position.first) * kBytesAtOnce + 4;
    result.reach = std::max(result.reach, position.byte + reads);
    result.positions.push_back(position);
  }
  return result;
}

__attribute__((target("avx2"))) inline void AddQuad(const uint8_t* from, const Quad& quad,
                                                    __m256i& high, __m256i& low) {
  // R0 R1 G0 G1 B0 B1 as words, and the same of pixels 2 and 3.
  const __m256i order =
      _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7,
                       -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i pixels = _mm256_shuffle_epi8(
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), order);
  const auto* weights = reinterpret_cast<const __m256i*>(quad.high);
  high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, _mm256_load_si256(weights)));
  low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, _mm256_load_si256(weights + 1)));
}

__attribute__((target("avx2"))) inline void StorePixel(__m256i high, __m256i low,
                                                       const int32_t* start, uint8_t* to) {
  const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  sum = _mm_add_epi32(sum, _mm_load_si128(reinterpret_cast<const __m128i*>(start)));
  sum = _mm_srai_epi32(sum, kPrecisionBits);
  sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);
  const uint32_t rgb = static_cast<uint32_t>(_mm_cvtsi128_si32(sum));
  std::memcpy(to, &rgb, 3);
}

// Four rows at a time, so that weights are loaded once for them.
__attribute__((target("avx2"))) void Avx2Rows(const uint8_t* const (&rows)[4], const QuadTaps& taps,
                                              uint8_t* const (&out)[4]) {
  const __m256i zero = _mm256_setzero_si256();
  for (size_t x = 0; x < taps.positions.size(); ++x) {
    const Position& at = taps.positions[x];
    __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    size_t byte = at.byte;
    for (size_t q = at.first; q < at.last; ++q, byte += kBytesAtOnce) {
      for (int r = 0; r < 4; ++r) AddQuad(rows[r] + byte, taps.quads[q], high[r], low[r]);
    }
    for (int r = 0; r < 4; ++r) StorePixel(high[r], low[r], at.start, out[r] + 3 * x);
  }
}

__attribute__((target("avx2"))) inline __m256i Finished(__m256i high, __m256i low,
                                                        const int32_t* start) {
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low),
                                       _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start)));
  return _mm256_srai_epi32(sum, kPrecisionBits);
}

int32_t PairOf(int16_t first, int16_t second) {
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(second)) << 16 |
                              static_cast<uint16_t>(first));
}

// 16 columns from `from` on, whose rows are `line` bytes apart.
__attribute__((target("avx2"))) void Avx2Columns(const uint8_t* from, size_t line,
                                                 const std::vector<int32_t>& weights,
                                                 const int32_t* start, uint8_t* to) {
  __m256i high0 = _mm256_setzero_si256(), high1 = high0, low0 = high0, low1 = high0;
  for (size_t t = 0; t < weights.size(); t += 2) {
    const bool pair = t + 1 < weights.size();
    const uint8_t* const row = from + t * line;
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pair ? row + line : row));
    const int32_t next = pair ? weights[t + 1] : 0;
    const __m256i high = _mm256_set1_epi32(PairOf(High(weights[t]), High(next)));
    const __m256i low = _mm256_set1_epi32(PairOf(Low(weights[t]), Low(next)));
    const __m256i first = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
    const __m256i second = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
    high0 = _mm256_add_epi32(high0, _mm256_madd_epi16(first, high));
    low0 = _mm256_add_epi32(low0, _mm256_madd_epi16(first, low));
    high1 = _mm256_add_epi32(high1, _mm256_madd_epi16(second, high));
    low1 = _mm256_add_epi32(low1, _mm256_madd_epi16(second, low));
  }
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(Finished(high0, low0, start), Finished(high1, low1, start + 8)), 0xD8);
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}

void RowsByAvx2(const RgbRows& rows, const std::vector<Taps>& taps, const Colour& margin,
                std::vector<uint8_t>& result) {
  const QuadTaps quads = ToQuads(taps, margin);
  const size_t line = size_t{3} * rows.width, out_line = taps.size() * 3;
  const size_t size = line * rows.height;
  // Rows near the end, behind which nothing may be read.
  std::vector<uint8_t> copies(4 * quads.reach);
  std::vector<uint8_t> nowhere(out_line);
  for (int y = 0; y < rows.height; y += 4) {
    const uint8_t* in[4];
    uint8_t* out[4];
    for (int r = 0; r < 4; ++r) {
      const bool there = y + r < rows.height;
      const size_t at = static_cast<size_t>(there ? y + r : y) * line;
      out[r] = there ? &result[static_cast<size_t>(y + r) * out_line] : nowhere.data();
      in[r] = rows.data + at;
      if (at + quads.reach <= size) continue;
      uint8_t* const copy = copies.data() + r * quads.reach;
      std::memcpy(copy, in[r], std::min(line, quads.reach));
      in[r] = copy;
    }
    Avx2Rows(in, quads, out);
  }
}

void ColumnsByAvx2(const RgbRows& rows, int first_row, const std::vector<Taps>& taps,
                   const Colour& margin, std::vector<uint8_t>& result) {
  constexpr size_t kStep = 16;
  const size_t line = size_t{3} * rows.width, whole = line / kStep * kStep;
  // The last columns, in rows that may be read whole.
  std::vector<uint8_t> rest(kStep * rows.height);
  if (whole < line) {
    for (int y = 0; y < rows.height; ++y) {
      std::memcpy(&rest[kStep * y], rows.data + y * line + whole, line - whole);
    }
  }
  for (size_t y = 0; y < taps.size(); ++y) {
    const Taps& one = taps[y];
    int32_t starts[kStep + 3];
    for (size_t i = 0; i < kStep + 3; ++i) starts[i] = kHalf + margin[i % 3] * one.margin;
    const size_t row = one.weights.empty() ? 0 : static_cast<size_t>(one.first - first_row);
    uint8_t* const out = &result[y * line];
    for (size_t x = 0; x < whole; x += kStep) {
      Avx2Columns(rows.data + row * line + x, line, one.weights, starts + x % 3, out + x);
    }
    if (whole == line) continue;
    uint8_t last[kStep];
    Avx2Columns(rest.data() + row * kStep, kStep, one.weights, starts + whole % 3, last);
    std::memcpy(out + whole, last, line - whole);
  }
}

#endif

}  // namespace

std::vector<Taps> BicubicTaps(const Axis& axis, int out, int begin, int count) {
  const double scale = static_cast<double>(axis.length) / out;
  const double filter_scale = std::max(scale, 1.0);
  const double support = kSupport * filter_scale;
  const double step = 1.0 / filter_scale;
  std::vector<Taps> all(count);
  std::vector<double> exact;
  for (int i = 0; i < count; ++i) {
    const double center = (begin + i + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int last = std::min(static_cast<int>(center + support + 0.5), axis.length);
    exact.resize(last - first);
    double sum = 0;
    for (int x = first; x < last; ++x) {
      exact[x - first] = Cubic((x - center + 0.5) * step);
      sum += exact[x - first];
    }
    Taps& taps = all[i];
    taps.first = std::max(first - axis.offset, 0);
    for (int x = first; x < last; ++x) {
      const double share = sum == 0 ? exact[x - first] : exact[x - first] / sum;
      const double scaled = share * (1 << kPrecisionBits);
      const auto weight = static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
      if (x >= axis.offset && x < axis.offset + axis.picture) {
        taps.weights.push_back(weight);
      } else {
        taps.margin += weight;
      }
    }
  }
  return all;
}

Simd BestSimd() {
#if defined(__x86_64__)
  static const bool kAvx2 = __builtin_cpu_supports("avx2");
  if (kAvx2) return Simd::kAvx2;
#endif
  return Simd::kNone;
}

std::vector<uint8_t> ResampleRows(const RgbRows& rows, const std::vector<Taps>& taps,
                                  const Colour& margin, Simd simd) {
  const size_t out_line = taps.size() * 3;
  std::vector<uint8_t> result(out_line * rows.height);
#if defined(__x86_64__)
  if (simd == Simd::kAvx2) {
    RowsByAvx2(rows, taps, margin, result);
    return result;
  }
#endif
  for (int y = 0; y < rows.height; ++y) {
    PortableRow(rows.data + size_t{3} * rows.width * y, taps, margin, &result[y * out_line]);
  }
  return result;
}

std::vector<uint8_t> ResampleColumns(const RgbRows& rows, int first_row,
                                     const std::vector<Taps>& taps, const Colour& margin,
                                     Simd simd) {
  const size_t line = size_t{3} * rows.width;
  std::vector<uint8_t> result(line * taps.size());
#if defined(__x86_64__)
  if (simd == Simd::kAvx2) {
    ColumnsByAvx2(rows, first_row, taps, margin, result);
    return result;
  }
#endif
  std::vector<int32_t> sums;
  for (size_t y = 0; y < taps.size(); ++y) {
    const size_t row = taps[y].weights.empty() ? 0 : taps[y].first - first_row;
    PortableColumns(rows.data + row * line, line, taps[y], margin, sums, &result[y * line]);
  }
  return result;
}

}  // namespace llava
