// The error of quantised products beside that of llama.cpp's formats q8_0 and q4_0 (blocks of 32, a
// scale in half precision, x in q8_0), quantised here as described there.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/ops/gemm_cases.h"

namespace llava::ops::cpu {
namespace {

// To the nearest number with 11 bits: scales here are neither tiny nor huge.
float RoundedToHalf(float value) {
  int exponent;
  const float mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(mantissa * 2048) / 2048, exponent);
}

void Q8_0(float* block) {
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::abs(block[i]));
  const float d = most / 127, inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < 32; ++i) block[i] = std::round(block[i] * inverse) * RoundedToHalf(d);
}

void Q4_0(float* block) {
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

Matrix InBlocks(Matrix matrix, void (*quantize)(float*)) {
  for (size_t i = 0; i < matrix.data.size(); i += 32) quantize(&matrix.data[i]);
  return matrix;
}

double Error(const std::vector<double>& found, const std::vector<double>& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / size);
}

void Compare(double outliers) {
  ThreadPool pool(2);
  Multiplier multiplier(pool);
  const Matrix x = Random(16, 2048, 1), w = Random(256, 2048, 2, outliers);
  const std::vector<double> exact = Exact(x, w);
  const Matrix x8 = InBlocks(x, Q8_0);
  const double q8_0 = Error(Exact(x8, InBlocks(w, Q8_0)), exact);
  const double q4_0 = Error(Exact(x8, InBlocks(w, Q4_0)), exact);
  const auto ours = [&](const PackedMatrix::Options& options) {
    return RelativeError(Multiplied(multiplier, x, Packed(w, options, pool)).data, exact);
  };
  std::printf("relative error, a share of %g of the weights x 20: q8_0 %.5f, q4_0 %.5f\n", outliers,
              q8_0, q4_0);
  for (const FormatCase& format : Formats()) {
    const double error = ours(format.options);
    std::printf("  %-12s %.5f\n", format.name.c_str(), error);
    if (outliers == 0) continue;
    if (format.options.format == WeightFormat::kInt4) {
      EXPECT_LE(error, q4_0) << format.name;
    } else {
      EXPECT_LE(error, q8_0) << format.name;
    }
  }
  EXPECT_LE(ours({WeightFormat::kInt4, 32}), q4_0);
  EXPECT_LE(ours({WeightFormat::kInt4}), 1.15 * q4_0);
  EXPECT_LE(ours({WeightFormat::kInt8, 32}), 1.01 * q8_0);
  EXPECT_LE(ours({WeightFormat::kInt8}), 1.35 * q8_0);
}

TEST(QuantizationErrorTest, OfNormalWeightsWithOutliers) { Compare(0.001); }
TEST(QuantizationErrorTest, OfNormalWeights) { Compare(0); }

}  // namespace
}  // namespace llava::ops::cpu
