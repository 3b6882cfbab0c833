// Rows of x into what the kernels of products take, and their sums into rows of y.
#include "model/ops/cpu/gemm.h"
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/simd.h"

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
    uint8_t* values = to.values + (b * to.rows + row) * layout.block;
    for (int64_t k = 0; k < layout.block; k += kLanes) {
      Vector v = {};
      if (inverse != 0) v = LoadWithin(x, begin + k, layout.depth) * inverse;
      const IntVector q = __builtin_convertvector((v + kRound) - kRound, IntVector);
      sum += q;
      const Bytes bytes = __builtin_convertvector(q, Bytes);
      __builtin_memcpy(values + k, &bytes, sizeof(bytes));
    }
    const int32_t total = Reduce(sum, [](auto a, auto b) { return a + b; });
    to.scales[b * to.rows + row] = scale;
    to.corrections[b * to.rows + row] = -offset * total;
  }
}

// Into values of type To, block by block.
template <typename To, typename T>
void RoundRow(const PrepareTask& task, const T* x, int64_t row) {
  const PackedLayout& layout = *task.layout;
  const Activations& to = *task.activations;
  for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
    const int64_t begin = b * layout.block, left = layout.padded_depth - begin;
    const int64_t depth = left < layout.block ? left : layout.block;
    To* values = reinterpret_cast<To*>(to.values) + begin * to.rows + row * depth;
    for (int64_t k = 0; k < depth; k += kLanes) {
      Store(values + k, LoadWithin(x, begin + k, layout.depth));
    }
  }
}

// In each pair of vectors kStep apart, changes the upper lanes of every 2 kStep in the first with
// the lower ones of the second.
template <int kStep>
[[gnu::always_inline]] inline void Exchange(Vector (&v)[kLanes]) {
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
[[gnu::always_inline]] inline void Transpose(Vector (&v)[kLanes]) {
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

// [count, K] -> [K, kRowBlock], zeros for rows that are not there.
template <typename T>
void TransposeRows(const PrepareTask& task, int64_t begin, int64_t end) {
  const int64_t depth = task.layout->depth;
  float* to = task.activations->exact + task.first * depth;
  for (int64_t k = begin; k < end; k += kLanes) {
    Vector v[kLanes] = {};
    for (int64_t i = 0; i < task.count; ++i) {
      const T* row = static_cast<const T*>(task.x.data) + (task.first + i) * task.x.stride;
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
  for (int64_t i = task.first; i < task.first + task.count; ++i) {
    const T* x = static_cast<const T*>(task.x.data) + i * task.x.stride;
    if (layout.format == WeightFormat::kBFloat16) {
      RoundRow<BFloat16>(task, x, i);
    } else if (layout.format == WeightFormat::kFloat) {
      RoundRow<float>(task, x, i);
    } else {
      QuantizeRow(task, x, i);
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

template <typename T>
void WriteRows(const FinishTask& task) {
  const int64_t column = task.panel * kPanel, left = task.layout->rows - column;
  for (int64_t i = 0; i < task.rows; ++i) {
    T* y = static_cast<T*>(task.y.data) + (task.first_row + i) * task.y.stride + column;
    const float* sums = task.sums + i * kPanel;
    for (int64_t j = 0; j < kPanel && j < left; j += kLanes) {
      Vector v = Load(sums + j);
      if (j + kLanes <= left) {
        if (task.add) v += Load(y + j);
        Store(y + j, v);
      } else {
        if (task.add) v += LoadPart(y + j, left - j);
        StorePart(y + j, v, left - j);
      }
    }
  }
}

}  // namespace

void Prepare(const PrepareTask& task) {
  if (task.element == Element::kFloat) {
    PrepareRows<float>(task);
  } else {
    PrepareRows<BFloat16>(task);
  }
}

void Finish(const FinishTask& task) {
  if (task.num_outliers > 0) {
    if (task.activations->lanes == 1) {
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
    WriteRows<float>(task);
  } else {
    WriteRows<BFloat16>(task);
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
