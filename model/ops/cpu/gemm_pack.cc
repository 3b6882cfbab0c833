// Rows of weights into panels.
#include <initializer_list>

#include "model/ops/cpu/gemm.h"
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/simd.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

// A weight is an outlier above so many means of the absolute values of its group: 4 sigma of normal
// ones.
constexpr float kOutlierMeans = 5;
constexpr float kTiny = 0x1p-100f;  // groups without a larger value are zero

[[gnu::always_inline]] inline Vector Abs(Vector v) {
  return reinterpret_cast<Vector>(reinterpret_cast<BitVector>(v) & 0x7FFFFFFF);
}

int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// Means of the absolute values of each group.
void Means(const PackedLayout& layout, const float* row, float* means) {
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const int64_t begin = b * layout.block;
    Vector sum = {};
    for (int64_t k = 0; k < layout.block; k += kLanes) sum += Abs(Load(row + begin + k));
    means[b] = Sum(sum) / static_cast<float>(Least(layout.block, layout.depth - begin));
  }
}

int64_t CountAbove(const PackedLayout& layout, const float* row, const float* means, float factor) {
  IntVector count = {};
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const Vector limit = Vector{} + means[b] * factor;
    const float* group = row + b * layout.block;
    for (int64_t k = 0; k < layout.block; k += kLanes) count -= Abs(Load(group + k)) > limit;
  }
  int64_t total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += count[lane];
  return total;
}

struct Range {
  float low, high;
};

// Of what is not above the limit.
Range RangeOf(const float* values, int64_t size, float limit) {
  Vector low = {}, high = {};
  for (int64_t k = 0; k < size; k += kLanes) {
    const Vector v = Load(values + k);
    const Vector kept = Abs(v) > Vector{} + limit ? Vector{} : v;
    low = Max(low, -kept);
    high = Max(high, kept);
  }
  return {-Largest(low), Largest(high)};
}

uint16_t RoundToBFloat16(float value) {
  BFloat16 lanes[kLanes];
  Store(lanes, Vector{} + value);
  return lanes[0].bits;
}
float Widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}

// Multiples of the scale, at most `least` and `most`, plus `offset`; outliers are 0.
struct Quantizer {
  float inverse;  // of the scale; 0: all values are 0
  float limit;
  float least, most;

  [[gnu::always_inline]] Vector Multiples(Vector v) const {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Vector zero = {};
    if (inverse == 0) return zero;
    Vector q = (Abs(v) > zero + limit ? zero : v) * inverse;
    q = q < zero + least ? zero + least : q;
    q = q > zero + most ? zero + most : q;
    return (q + kRound) - kRound;
  }
  float SquaredError(const float* values, int64_t size, float scale) const {
    Vector sum = {};
    for (int64_t k = 0; k < size; k += kLanes) {
      const Vector v = Load(values + k);
      const Vector error = (Abs(v) > Vector{} + limit ? Vector{} : v) - Multiples(v) * scale;
      sum += error * error;
    }
    return Sum(sum);
  }
};

struct Scaled {
  uint16_t scale;  // bfloat16
  Quantizer quantizer;
};

Scaled ScaledBy(float scale, float limit, float least, float most) {
  const uint16_t bits = RoundToBFloat16(scale);
  return {bits, {1.0f / Widen(bits), limit, least, most}};
}

Scaled ScaleOf(WeightFormat format, const float* values, int64_t size, float limit) {
  const Range range = RangeOf(values, size, limit);
  const float most = -range.low > range.high ? -range.low : range.high;
  float sum = 0;
  for (int64_t k = 0; k < size; k += kLanes) sum += Sum(Load(values + k) * 0.0f);
  if (sum != 0) return {0x7FC0, {0, limit, 0, 0}};  // a value is not finite: nothing is known
  if (most < kTiny) return {0, {0, limit, 0, 0}};
  if (format == WeightFormat::kInt8) return ScaledBy(most / 127, limit, -127, 127);
  // Multiples go from -8 to 7: -8 is the value farthest from 0. Smaller scales that cut off a
  // little may be nearer to all values.
  const float whole = (-range.low > range.high ? most : -most) / 8;
  Scaled best = {};
  float least_error = __builtin_inff();
  for (const float part : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f}) {
    const Scaled scaled = ScaledBy(whole * part, limit, -8, 7);
    const float error = scaled.quantizer.SquaredError(values, size, Widen(scaled.scale));
    if (error < least_error) {
      least_error = error;
      best = scaled;
    }
  }
  return best;
}

void PackGroup(WeightFormat format, const Quantizer& quantizer, const float* values, int64_t size,
               uint8_t* to) {
  using Bytes = int8_t __attribute__((vector_size(16)));
  const float offset = format == WeightFormat::kInt8 ? 128 : 8;
  for (int64_t k = 0; k < size; k += kLanes) {
    const Vector q = quantizer.Multiples(Load(values + k)) + offset;
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(q, IntVector), Bytes);
    uint32_t quads[4];
    __builtin_memcpy(quads, &bytes, sizeof(quads));
    if (format == WeightFormat::kInt8) {
      for (int i = 0; i < 4; ++i) __builtin_memcpy(to + (k / 4 + i) * 4 * kPanel, &quads[i], 4);
    } else {
      for (int i = 0; i < 2; ++i) {
        const uint32_t both = quads[2 * i] | quads[2 * i + 1] << 4;
        __builtin_memcpy(to + (k / 8 + i) * 4 * kPanel, &both, 4);
      }
    }
  }
}

void PackIntegers(PackTask& task) {
  const PackedLayout& layout = *task.layout;
  float factor = __builtin_inff();
  Means(layout, task.row, task.scratch);
  if (task.outliers != nullptr) {
    factor = kOutlierMeans;
    while (CountAbove(layout, task.row, task.scratch, factor) > task.most_outliers) factor *= 1.2f;
  }
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const float* values = task.row + b * layout.block;
    // Nothing is above infinity, and nothing above NaN.
    const float limit = task.outliers != nullptr ? task.scratch[b] * factor : factor;
    const Scaled scaled = ScaleOf(layout.format, values, layout.block, limit);
    uint8_t* block = task.panel + b * layout.block_bytes;
    __builtin_memcpy(block + task.column * 2, &scaled.scale, 2);
    PackGroup(layout.format, scaled.quantizer, values, layout.block,
              block + kScaleBytes + task.column * 4);
    if (task.outliers == nullptr) continue;
    for (int64_t k = 0; k < layout.block; ++k) {
      if (!(__builtin_fabsf(values[k]) > limit)) continue;
      const int64_t where = (b * layout.block + k) * kPanel + task.column;
      task.outliers[task.num_outliers++] = {static_cast<uint32_t>(where), values[k]};
    }
  }
}

void PackBFloat16(const PackTask& task) {
  const float* const row = task.row;
  const int64_t column = task.column;
  for (int64_t k = 0; k < task.layout->padded_depth; k += kLanes) {
    BFloat16 rounded[kLanes];
    Store(rounded, Load(row + k));
    for (int64_t i = 0; i < kLanes; i += 2) {
      __builtin_memcpy(task.panel + (k + i) * kPanel * 2 + column * 4, rounded + i, 4);
    }
  }
}

void PackFloat(const PackTask& task) {
  const float* const row = task.row;
  const int64_t column = task.column;
  for (int64_t k = 0; k < task.layout->padded_depth; ++k) {
    __builtin_memcpy(task.panel + (k * kPanel + column) * 4, row + k, 4);
  }
}

}  // namespace

void Pack(PackTask& task) {
  task.num_outliers = 0;
  if (task.layout->format == WeightFormat::kBFloat16) {
    PackBFloat16(task);
  } else if (task.layout->format == WeightFormat::kFloat) {
    PackFloat(task);
  } else {
    PackIntegers(task);
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
