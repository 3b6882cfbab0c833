// Rows of x into what the kernels of products take, and their sums into rows of y.
#include "model/ops/cpu/gemm.h"
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/simd.h"
#include "model/ops/cpu/transpose.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

constexpr float kTiny = 0x1p-100f;  // groups without a larger value are zero

// Up to 16 values from `k` on of a row of `size`; zeros behind its end.
template <typename T>
[[gnu::always_inline]] inline Vector LoadWithin(const T* row, int64_t k, int64_t size) {
  if (k + kLanes <= size) return Load(row + k);
  if (k >= size) return Vector{};
  return LoadPart(row + k, size - k);
}

[[gnu::always_inline]] inline uint8_t* At(const BlockValues& values, int64_t byte) {
  return values.data + byte / values.unit * values.step + byte % values.unit;
}

template <typename T>
void QuantizeRow(const PrepareTask& task, const T* x, int64_t row) {
  using Bytes = int8_t __attribute__((vector_size(16)));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr int32_t kInfinity = 0x7F800000;
  const PackedLayout& layout = *task.layout;
  const Activations& to = *task.activations;
  const int32_t offset = layout.format == WeightFormat::kInt8 ? 128 : 8;
  for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
    const int64_t begin = b * layout.block;
    // Bits of absolute values are ordered as these are, and above all stand infinity and NaN.
    IntVector most = {};
    for (int64_t k = 0; k < layout.block; k += kLanes) {
      const Vector v = LoadWithin(x, begin + k, layout.depth);
      const IntVector bits = reinterpret_cast<IntVector>(v) & 0x7FFFFFFF;
      most = most > bits ? most : bits;
    }
    const int32_t bits = Reduce(most, [](auto a, auto b) { return a > b ? a : b; });
    float peak;
    __builtin_memcpy(&peak, &bits, sizeof(peak));
    float scale = peak / 127, inverse = 127 / peak;
    if (bits >= kInfinity || peak < kTiny) {
      scale = bits < kInfinity ? 0.0f : __builtin_nanf("");
      inverse = 0;
    }
    IntVector sum = {};
    const BlockValues values = ValuesOf(to, row, b, layout.block);
    for (int64_t k = 0; k < layout.block; k += kLanes) {
      Vector v = {};
      if (inverse != 0) v = LoadWithin(x, begin + k, layout.depth) * inverse;
      const IntVector q = __builtin_convertvector((v + kRound) - kRound, IntVector);
      sum += q;
      const Bytes bytes = __builtin_convertvector(q, Bytes);
      __builtin_memcpy(At(values, k), &bytes, sizeof(bytes));
    }
    const int32_t total = Reduce(sum, [](auto a, auto b) { return a + b; });
    to.scales[b * to.rows + row] = scale;
    to.corrections[b * to.rows + row] = -offset * total;
  }
}

// Into values of type To.
template <typename To, typename T>
void RoundRow(const PrepareTask& task, const T* x, int64_t row) {
  const PackedLayout& layout = *task.layout;
  const Activations& to = *task.activations;
  constexpr int64_t kBytes = sizeof(To);
  for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
    const int64_t begin = b * layout.block, left = layout.padded_depth - begin;
    const int64_t size = left < layout.block ? left : layout.block;
    const BlockValues values = ValuesOf(to, row, b, layout.block * kBytes);
    for (int64_t k = 0; k < size; k += kLanes) {
      StoreRounded(reinterpret_cast<To*>(At(values, k * kBytes)),
                   LoadWithin(x, begin + k, layout.depth));
    }
  }
}

// [count, K] -> [K, kRowBlock], zeros for rows that are not there.
template <typename T>
void TransposeRows(const PrepareTask& task, int64_t begin, int64_t end) {
  const int64_t depth = task.layout->depth;
  float* to = task.activations->exact + task.first * depth;
  for (int64_t k = begin; k < end; k += kLanes) {
    Vector v[kLanes] = {};
    for (int64_t i = 0; i < task.count; ++i) {
      const T* row = static_cast<const T*>(task.x.data) + i * task.x.stride;
      v[i] = LoadWithin(row, k, depth);
    }
    Transpose(v);
    for (int64_t i = 0; i < kLanes && k + i < depth; ++i) Store(to + (k + i) * kRowBlock, v[i]);
  }
}

template <typename T>
void PrepareRows(const PrepareTask& task) {
  const PackedLayout& layout = *task.layout;
  const Activations& to = *task.activations;
  const int64_t begin = task.first_block * layout.block;
  int64_t end = begin + task.blocks * layout.block;
  if (end > layout.depth) end = layout.depth;
  for (int64_t i = 0; i < task.count; ++i) {
    const T* x = static_cast<const T*>(task.x.data) + i * task.x.stride;
    const int64_t row = task.first + i;
    if (layout.format == WeightFormat::kBFloat16) {
      RoundRow<BFloat16>(task, x, row);
    } else if (layout.format == WeightFormat::kFloat) {
      RoundRow<float>(task, x, row);
    } else {
      QuantizeRow(task, x, row);
    }
    if (to.exact == nullptr || to.lanes != 1) continue;
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) Store(to.exact + k, Load(x + k));
    if (k < end) StorePart(to.exact + k, LoadPart(x + k, end - k), end - k);
  }
  if (to.exact != nullptr && to.lanes != 1) TransposeRows<T>(task, begin, end);
}

// sums [32] += outliers times the only row. Outliers of a column follow each other: their sum is
// carried in a register and stored each time, which takes neither branches nor loads of what was
// just stored.
void AddOutliersOfOne(const FinishTask& task) {
  float extra[kPanel] = {};
  const float* x = task.activations->exact;
  uint32_t sum = 0, last = kPanel;  // bits of a float; a column
  for (int64_t i = 0; i < task.num_outliers; ++i) {
    const Outlier& outlier = task.outliers[i];
    const uint32_t column = outlier.where % kPanel;
    sum &= 0u - static_cast<uint32_t>(column == last);
    last = column;
    float value;
    __builtin_memcpy(&value, &sum, sizeof(value));
    value += outlier.value * x[outlier.where / kPanel];
    extra[column] = value;
    __builtin_memcpy(&sum, &value, sizeof(sum));
  }
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    Store(task.sums + j, Load(task.sums + j) + Load(extra + j));
  }
}

// The same of rows [first, first + count) of x, at most kRowBlock of them.
void AddOutliers(const FinishTask& task, int64_t first, int64_t count, float* sums) {
  Vector extra[kPanel];
#pragma GCC unroll 32
  for (Vector& v : extra) v = Vector{};
  const float* x = task.activations->exact + first * task.layout->depth;
  BitVector sum = {};
  uint32_t last = kPanel;
  for (int64_t i = 0; i < task.num_outliers; ++i) {
    const Outlier& outlier = task.outliers[i];
    const uint32_t column = outlier.where % kPanel;
    sum &= 0u - static_cast<uint32_t>(column == last);
    last = column;
    const int64_t k = outlier.where / kPanel;
    const Vector value = reinterpret_cast<Vector>(sum) + outlier.value * Load(x + k * kRowBlock);
    extra[column] = value;
    sum = reinterpret_cast<BitVector>(value);
  }
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    Vector v[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) v[i] = extra[j + i];
    Transpose(v);
    for (int64_t i = 0; i < count; ++i) {
      float* to = sums + i * kPanel + j;
      Store(to, Load(to) + v[i]);
    }
  }
}

// Outliers of large groups meet the values that the product saw.
void AddOutliersOfValues(const FinishTask& task) {
  const Activations& x = *task.activations;
  const int64_t block = task.layout->block;
  for (int64_t i = 0; i < task.num_outliers; ++i) {
    const Outlier& outlier = task.outliers[i];
    const int64_t k = outlier.where / kPanel;
    const BlockValues of_block = ValuesOf(x, task.first_row, k / block, block);
    const uint8_t* values = At(of_block, k % block);
    const float* scales = x.scales + k / block * x.rows + task.first_row;
    float* sums = task.sums + outlier.where % kPanel;
    for (int64_t row = 0; row < task.rows; ++row) {
      const auto value = static_cast<float>(static_cast<int8_t>(values[row * of_block.line]));
      sums[row * kPanel] += outlier.value * (value * scales[row]);
    }
  }
}

[[gnu::always_inline]] inline Vector Apply(Unary function, Vector v) {
  if (function == Unary::kQuickGelu) return v / (1.0f + Exp(v * -1.702f));
  if (function == Unary::kGelu) {
    constexpr float kInverseRootOf2 = 0.70710678f;
    for (int64_t i = 0; i < kLanes; ++i) {
      v[i] *= 0.5f * (1.0f + __builtin_erff(v[i] * kInverseRootOf2));
    }
  }
  return v;
}

template <typename T, Unary kFunction>
void WriteRows(const FinishTask& task) {
  const int64_t column = task.panel * kPanel, left = task.layout->rows - column;
  for (int64_t i = 0; i < task.rows; ++i) {
    T* y = static_cast<T*>(task.y.data) + (task.first_row + i) * task.y.stride + column;
    const float* sums = task.sums + i * kPanel;
    for (int64_t j = 0; j < kPanel && j < left; j += kLanes) {
      Vector v = Load(sums + j);
      if (task.bias != nullptr) v += LoadWithin(task.bias, column + j, task.layout->rows);
      v = Apply(kFunction, v);
      if (j + kLanes <= left) {
        if (task.add) v += Load(y + j);
        StoreRounded(y + j, v);
      } else {
        if (task.add) v += LoadPart(y + j, left - j);
        StorePart(y + j, v, left - j);
      }
    }
  }
}

template <typename T>
void WriteAll(const FinishTask& task) {
  switch (task.function) {
    case Unary::kNone:
      return WriteRows<T, Unary::kNone>(task);
    case Unary::kQuickGelu:
      return WriteRows<T, Unary::kQuickGelu>(task);
    case Unary::kGelu:
      return WriteRows<T, Unary::kGelu>(task);
  }
}

template <typename T>
void NormRow(const RowNorm& norm, const T* x, int64_t width, float* out) {
  const auto size = static_cast<float>(width);
  Vector sum = {};
  for (int64_t k = 0; k < width; k += kLanes) sum += LoadWithin(x, k, width);
  const float mean = Sum(sum) / size;
  Vector squares = {};
  for (int64_t k = 0; k < width; k += kLanes) {
    Vector v = LoadWithin(x, k, width) - mean;
    if (k + kLanes > width) v = kLane < static_cast<int32_t>(width - k) ? v : Vector{};
    squares += v * v;
  }
  const float scale = 1.0f / __builtin_sqrtf(Sum(squares) / size + norm.eps);
  for (int64_t k = 0; k < width; k += kLanes) {
    const Vector v = (LoadWithin(x, k, width) - mean) * scale * LoadWithin(norm.weight, k, width) +
                     LoadWithin(norm.bias, k, width);
    if (k + kLanes <= width) {
      Store(out + k, v);
    } else {
      StorePart(out + k, v, width - k);
    }
  }
}

template <typename T>
void PrepareNormed(PrepareTask task) {
  const int64_t width = task.layout->depth;
  for (int64_t i = 0; i < task.count; ++i) {
    NormRow(*task.norm, static_cast<const T*>(task.x.data) + i * task.x.stride, width,
            task.scratch + i * width);
  }
  task.x = {task.scratch, width};
  PrepareRows<float>(task);
}

}  // namespace

void Prepare(const PrepareTask& task) {
  const bool floats = task.element == Element::kFloat;
  if (task.norm != nullptr) {
    floats ? PrepareNormed<float>(task) : PrepareNormed<BFloat16>(task);
  } else {
    floats ? PrepareRows<float>(task) : PrepareRows<BFloat16>(task);
  }
}

void Finish(const FinishTask& task) {
  if (task.num_outliers > 0) {
    if (task.activations->exact == nullptr) {
      AddOutliersOfValues(task);
    } else if (task.activations->lanes == 1) {
      AddOutliersOfOne(task);
    } else {
      for (int64_t i = 0; i < task.rows; i += kRowBlock) {
        const int64_t left = task.rows - i;
        AddOutliers(task, task.first_row + i, left < kRowBlock ? left : kRowBlock,
                    task.sums + i * kPanel);
      }
    }
  }
  if (task.element == Element::kFloat) {
    WriteAll<float>(task);
  } else {
    WriteAll<BFloat16>(task);
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
