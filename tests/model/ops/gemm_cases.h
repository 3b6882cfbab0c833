#pragma once

// Random matrices for the tests of packed weights, and a plain float64 product.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "model/ops/cpu/multiplier.h"

namespace llava::ops::cpu {

struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> data;

  Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns), data(rows * columns) {}
  float* row(int64_t i) { return data.data() + i * columns; }
  const float* row(int64_t i) const { return data.data() + i * columns; }
};

// Normal; a share of `outliers` is 20 times as large.
inline Matrix Random(int64_t rows, int64_t columns, unsigned seed, double outliers = 0) {
  Matrix matrix(rows, columns);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<double> uniform;
  for (float& value : matrix.data) {
    value = normal(random);
    if (outliers > 0 && uniform(random) < outliers) value *= 20;
  }
  return matrix;
}

inline PackedMatrix Packed(const Matrix& w, const PackedMatrix::Options& options,
                           ThreadPool& pool) {
  PackedMatrix packed(w.rows, w.columns, options);
  packed.Append(pool, SourceElement::kFloat, w.data.data(), w.rows, w.columns);
  return packed;
}

inline Matrix Unpacked(const PackedMatrix& packed) {
  Matrix matrix(packed.rows(), packed.depth());
  for (int64_t i = 0; i < matrix.rows; ++i) packed.Unpack(i, matrix.row(i));
  return matrix;
}

// Rows [first, first + count) of x times w.
inline Matrix Multiplied(Multiplier& multiplier, const Matrix& x, const PackedMatrix& w,
                         int64_t first, int64_t count) {
  Matrix y(count, w.rows());
  multiplier.Multiply({Element::kFloat, x.row(first), count, x.columns, x.columns}, w,
                      {Element::kFloat, y.data.data(), count, y.columns, y.columns});
  return y;
}
inline Matrix Multiplied(Multiplier& multiplier, const Matrix& x, const PackedMatrix& w) {
  return Multiplied(multiplier, x, w, 0, x.rows);
}

// x w^T in float64.
inline std::vector<double> Exact(const Matrix& x, const Matrix& w) {
  std::vector<double> y(x.rows * w.rows);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < w.rows; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < x.columns; ++k) sum += double{x.row(i)[k]} * w.row(j)[k];
      y[i * w.rows + j] = sum;
    }
  }
  return y;
}

// |found - expected| / |expected|, as vectors.
inline double RelativeError(const std::vector<float>& found, const std::vector<double>& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / size);
}

inline float RoundedToBFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// What products see of x.
inline Matrix Seen(const Matrix& x, const PackedMatrix& w) {
  Matrix seen = x;
  if (w.format() == WeightFormat::kFloat) return seen;
  if (w.format() == WeightFormat::kBFloat16) {
    for (float& value : seen.data) value = RoundedToBFloat16(value);
    return seen;
  }
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t k = 0; k < x.columns; k += w.group()) {
      const int64_t end = std::min(k + w.group(), x.columns);
      float most = 0;
      for (int64_t j = k; j < end; ++j) most = std::max(most, std::abs(x.row(i)[j]));
      if (most == 0) continue;
      for (int64_t j = k; j < end; ++j) {
        seen.row(i)[j] = std::nearbyint(x.row(i)[j] * (127 / most)) * (most / 127);
      }
    }
  }
  return seen;
}

// What a product with `w` should be, in float64: x as products see it, but outliers meet x itself
// unless groups are large.
inline std::vector<double> ExactOfStored(const Matrix& x, const PackedMatrix& w) {
  const Matrix seen = Seen(x, w);
  std::vector<double> y = Exact(seen, Unpacked(w));
  if (w.group() > kLargestExactGroup) return y;
  for (int64_t panel = 0; panel < w.layout().panels; ++panel) {
    const PackedMatrix::Outliers outliers = w.outliers(panel);
    for (const Outlier* o = outliers.data; o < outliers.data + outliers.size; ++o) {
      const int64_t row = panel * kPanel + o->where % kPanel, k = o->where / kPanel;
      for (int64_t i = 0; i < x.rows; ++i) {
        y[i * w.rows() + row] += (double{x.row(i)[k]} - seen.row(i)[k]) * o->value;
      }
    }
  }
  return y;
}

struct FormatCase {
  std::string name;
  PackedMatrix::Options options;
};
inline const std::vector<FormatCase>& Formats() {
  static const std::vector<FormatCase> kFormats = {
      {"float32", {WeightFormat::kFloat, 0, true}},
      {"bfloat16", {WeightFormat::kBFloat16, 0, true}},
      {"int8 in 128", {WeightFormat::kInt8, 128, true}},
      {"int8 in 64", {WeightFormat::kInt8, 64, true}},
      {"int8 in 32", {WeightFormat::kInt8, 32, true}},
      {"int4 in 128", {WeightFormat::kInt4, 128, true}},
      {"int4 in 64", {WeightFormat::kInt4, 64, true}},
      {"int4 in 32", {WeightFormat::kInt4, 32, true}},
  };
  return kFormats;
}

// And those of wide groups, for products of many rows.
inline const std::vector<FormatCase>& ProductFormats() {
  static const std::vector<FormatCase> kFormats = [] {
    std::vector<FormatCase> formats = Formats();
    formats.push_back({"int8 in 512", {WeightFormat::kInt8, 512, true}});
    return formats;
  }();
  return kFormats;
}

}  // namespace llava::ops::cpu
