// The error of quantised products beside that of llama.cpp's formats q8_0 and q4_0 (x in q8_0).
#include <cmath>
#include <cstdio>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/ops/block_formats.h"
#include "tests/model/ops/gemm_cases.h"

namespace llava::ops::cpu {
namespace {

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
