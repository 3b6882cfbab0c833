// Products with packed weights, by every instruction set of this processor.
#include "model/ops/cpu/multiplier.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/ops/gemm_cases.h"

namespace llava::ops::cpu {
namespace {

using ::testing::HasSubstr;

struct Shape {
  int64_t m, n, k;
};
const Shape kShapes[] = {{1, 1, 1},    {3, 5, 7},      {1, 32, 128},  {2, 33, 129}, {5, 64, 31},
                         {16, 31, 64}, {17, 100, 300}, {33, 65, 520}, {70, 40, 96}, {40, 96, 1100}};

// Calls test(kernels, format) for all of them.
template <typename Test>
void ForAll(const Test& test) {
  for (const Kernels& kernels : Available()) {
    for (const FormatCase& format : ProductFormats()) {
      SCOPED_TRACE(std::string(kernels.name) + " " + format.name);
      test(kernels, format);
    }
  }
}

TEST(MultiplierTest, IsTheProductOfWhatIsStored) {
  ThreadPool pool(2);
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    Multiplier multiplier(pool, kernels);
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(std::to_string(shape.m) + " " + std::to_string(shape.n) + " " +
                   std::to_string(shape.k));
      const Matrix x = Random(shape.m, shape.k, 1), w = Random(shape.n, shape.k, 2);
      const PackedMatrix packed = Packed(w, format.options, pool);
      const Matrix y = Multiplied(multiplier, x, packed);
      EXPECT_LT(RelativeError(y.data, ExactOfStored(x, packed)), 2e-6);
      const double of_format = format.options.format == WeightFormat::kFloat      ? 2e-6
                               : format.options.format == WeightFormat::kBFloat16 ? 0.006
                               : format.options.format == WeightFormat::kInt8     ? 0.015
                                                                                  : 0.15;
      EXPECT_LT(RelativeError(y.data, Exact(x, w)), of_format);
    }
  });
}

TEST(MultiplierTest, OutliersAreAddedExactly) {
  ThreadPool pool(2);
  for (const Kernels& kernels : Available()) {
    SCOPED_TRACE(kernels.name);
    Multiplier multiplier(pool, kernels);
    for (const int64_t group : {64, 256}) {
      for (const int64_t m : {1, 2, 16, 19, 40}) {
        const Matrix x = Random(m, 700, 1), w = Random(70, 700, 2, 0.002);
        const PackedMatrix packed = Packed(w, {WeightFormat::kInt8, group, true}, pool);
        ASSERT_GT(packed.num_outliers(), 30);
        EXPECT_LT(RelativeError(Multiplied(multiplier, x, packed).data, ExactOfStored(x, packed)),
                  2e-6);
      }
    }
  }
}

TEST(MultiplierTest, ARowIsTheSameInAnyCompany) {
  ThreadPool alone(1), three(3);
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    const Matrix x = Random(600, 600, 1), w = Random(75, 600, 2, 0.002);
    const PackedMatrix packed = Packed(w, format.options, alone);
    Multiplier one(alone, kernels), many(three, kernels);
    const Matrix all = Multiplied(many, x, packed);
    EXPECT_EQ(Multiplied(one, x, packed).data, all.data) << "threads";
    std::vector<int64_t> counts(17);
    std::iota(counts.begin(), counts.end(), 1);
    counts.insert(counts.end(), {24, 38, 64, 70, 513});
    for (const int64_t rows : counts) {
      for (const int64_t first : {int64_t{0}, int64_t{19}}) {
        const Matrix some = Multiplied(rows % 2 ? one : many, x, packed, first, rows);
        for (int64_t i = 0; i < rows; ++i) {
          ASSERT_EQ(0, std::memcmp(some.row(i), all.row(first + i), some.columns * sizeof(float)))
              << "row " << i << " of " << rows;
        }
      }
    }
    for (const int64_t row : {511, 512, 599}) {
      const Matrix some = Multiplied(one, x, packed, row, 1);
      EXPECT_EQ(0, std::memcmp(some.row(0), all.row(row), some.columns * sizeof(float)));
    }
  });
}

TEST(MultiplierTest, IntegersAgreeAcrossInstructionSets) {
  ThreadPool pool(2);
  const Matrix x = Random(75, 500, 1), w = Random(70, 500, 2, 0.002);
  for (const FormatCase& format : ProductFormats()) {
    if (!IsInteger(format.options.format)) continue;
    SCOPED_TRACE(format.name);
    const PackedMatrix packed = Packed(w, format.options, pool);
    Multiplier reference(pool, Available().back());
    for (const Kernels& kernels : Available()) {
      Multiplier multiplier(pool, kernels);
      EXPECT_EQ(Multiplied(multiplier, x, packed).data, Multiplied(reference, x, packed).data)
          << kernels.name;
    }
  }
}

TEST(MultiplierTest, BFloat16InAndOut) {
  ThreadPool pool(2);
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    Multiplier multiplier(pool, kernels);
    constexpr int64_t m = 18, n = 37, k = 150, gap = 3;
    Matrix x = Random(m, k, 1);
    const PackedMatrix packed = Packed(Random(n, k, 2, 0.01), format.options, pool);
    std::vector<uint16_t> half(m * (k + gap)), out(m * (n + gap), 0x4242);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        x.row(i)[j] = RoundedToBFloat16(x.row(i)[j]);
        std::memcpy(&half[i * (k + gap) + j], reinterpret_cast<const char*>(x.row(i) + j) + 2, 2);
      }
    }
    const Matrix y = Multiplied(multiplier, x, packed);
    multiplier.Multiply({Element::kBFloat16, half.data(), m, k, k + gap}, packed,
                        {Element::kBFloat16, out.data(), m, n, n + gap});
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n + gap; ++j) {
        uint16_t expected = 0x4242;
        if (j < n) {
          const float rounded = RoundedToBFloat16(y.row(i)[j]);
          std::memcpy(&expected, reinterpret_cast<const char*>(&rounded) + 2, 2);
        }
        ASSERT_EQ(out[i * (n + gap) + j], expected) << i << " " << j;
      }
    }
  });
}

TEST(MultiplierTest, AddsToWhatIsThere) {
  ThreadPool pool(2);
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    Multiplier multiplier(pool, kernels);
    const Matrix x = Random(5, 100, 1);
    const PackedMatrix packed = Packed(Random(45, 100, 2), format.options, pool);
    const Matrix product = Multiplied(multiplier, x, packed), before = Random(5, 45, 3);
    Matrix y = before;
    multiplier.Multiply({Element::kFloat, x.data.data(), 5, 100, 100}, packed,
                        {Element::kFloat, y.data.data(), 5, 45, 45}, Multiplier::Store::kAdd);
    for (size_t i = 0; i < y.data.size(); ++i) {
      ASSERT_EQ(y.data[i], product.data[i] + before.data[i]);
    }
  });
}

TEST(MultiplierTest, BiasAndFunctionBeforeWhatIsThere) {
  ThreadPool pool(2);
  const auto apply = [](Unary function, double v) {
    if (function == Unary::kQuickGelu) return v / (1 + std::exp(-1.702 * v));
    if (function == Unary::kGelu) return v * 0.5 * (1 + std::erf(v / std::sqrt(2.0)));
    return v;
  };
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    Multiplier multiplier(pool, kernels);
    const Matrix x = Random(18, 100, 1), bias = Random(1, 45, 4);
    const PackedMatrix packed = Packed(Random(45, 100, 2, 0.01), format.options, pool);
    const Matrix product = Multiplied(multiplier, x, packed), before = Random(18, 45, 3);
    for (const Unary function : {Unary::kNone, Unary::kQuickGelu, Unary::kGelu}) {
      for (const bool add : {false, true}) {
        Matrix y = before;
        multiplier.Multiply({Element::kFloat, x.data.data(), 18, 100, 100}, packed,
                            {Element::kFloat, y.data.data(), 18, 45, 45},
                            add ? Multiplier::Store::kAdd : Multiplier::Store::kOverwrite,
                            {bias.data.data(), function});
        for (size_t i = 0; i < y.data.size(); ++i) {
          const double v = apply(function, double{product.data[i]} + bias.data[i % 45]);
          const double expected = v + (add ? before.data[i] : 0);
          ASSERT_NEAR(y.data[i], expected, 2e-6 * (1 + std::abs(expected) + std::abs(v)));
        }
      }
    }
  });
}

TEST(MultiplierTest, RowsAreNormedOnTheirWay) {
  ThreadPool pool(2);
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    Multiplier multiplier(pool, kernels);
    for (const int64_t width : {7, 48, 150, 530}) {
      const int64_t m = 21;
      const Matrix x = Random(m, width, 1), weight = Random(1, width, 5),
                   bias = Random(1, width, 6);
      Matrix normed(m, width);
      for (int64_t i = 0; i < m; ++i) {
        double sum = 0, squares = 0;
        for (int64_t k = 0; k < width; ++k) sum += x.row(i)[k];
        for (int64_t k = 0; k < width; ++k) squares += std::pow(x.row(i)[k] - sum / width, 2);
        const double scale = 1 / std::sqrt(squares / width + 0.01);
        for (int64_t k = 0; k < width; ++k) {
          normed.row(i)[k] = static_cast<float>(
              (x.row(i)[k] - sum / width) * scale * weight.data[k] + bias.data[k]);
        }
      }
      const PackedMatrix packed = Packed(Random(40, width, 2, 0.005), format.options, pool);
      const Matrix plain = Multiplied(multiplier, normed, packed);
      const RowNorm norm{weight.data.data(), bias.data.data(), 0.01f};
      Matrix y(m, 40);
      Multiplier::Input in{Element::kFloat, x.data.data(), m, width, width};
      in.norm = &norm;
      multiplier.Multiply(in, packed, {Element::kFloat, y.data.data(), m, 40, 40});
      // Rounding puts some of the inputs on the other side of a half.
      const bool exact = format.options.format == WeightFormat::kFloat;
      EXPECT_LT(RelativeError(y.data, {plain.data.begin(), plain.data.end()}), exact ? 2e-6 : 2e-3)
          << width;
    }
  });
}

TEST(MultiplierTest, BFloat16IsMultipliedAsItLies) {
  ThreadPool pool(2);
  for (const Kernels& kernels : Available()) {
    Multiplier multiplier(pool, kernels);
    for (const int64_t m : {1, 15, 50}) {
      constexpr int64_t n = 40, k = 320, stride = 352;
      std::vector<uint16_t> x((m + kRowBlock) * stride);
      const Matrix values = Random(m, stride, 1);
      for (int64_t i = 0; i < m * stride; ++i) {
        const float rounded = RoundedToBFloat16(values.data[i]);
        std::memcpy(&x[i], reinterpret_cast<const char*>(&rounded) + 2, 2);
      }
      const PackedMatrix packed = Packed(Random(n, k, 2), {WeightFormat::kBFloat16, 0, true}, pool);
      Matrix y(m, n), other(m, n);
      Multiplier::Input in{Element::kBFloat16, x.data(), m, k, stride};
      multiplier.Multiply(in, packed, {Element::kFloat, y.data.data(), m, n, n});
      in.padded = true;
      multiplier.Multiply(in, packed, {Element::kFloat, other.data.data(), m, n, n});
      EXPECT_EQ(y.data, other.data) << kernels.name << " " << m;
    }
  }
}

TEST(MultiplierTest, WhatIsNotFiniteStaysInItsRow) {
  ThreadPool pool(2);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    Multiplier multiplier(pool, kernels);
    const PackedMatrix packed = Packed(Random(50, 300, 2, 0.002), format.options, pool);
    Matrix x = Random(20, 300, 1);
    const Matrix clean = Multiplied(multiplier, x, packed);
    x.row(2)[299] = std::nanf("");
    x.row(3)[0] = kInfinity;
    x.row(17)[150] = -kInfinity;
    x.row(18)[150] = 1e38f;
    const Matrix y = Multiplied(multiplier, x, packed);
    for (int64_t i = 0; i < y.rows; ++i) {
      for (int64_t j = 0; j < y.columns; ++j) {
        if (i == 2 || i == 3 || i == 17) {
          ASSERT_FALSE(std::isfinite(y.row(i)[j])) << i << " " << j;
        } else if (i != 18) {
          ASSERT_EQ(y.row(i)[j], clean.row(i)[j]) << i << " " << j;
        }
      }
    }
  });
}

TEST(MultiplierTest, ZerosGiveZerosAndTinyValuesNothingOdd) {
  ThreadPool pool(2);
  ForAll([&](const Kernels& kernels, const FormatCase& format) {
    Multiplier multiplier(pool, kernels);
    const PackedMatrix packed = Packed(Random(40, 130, 2), format.options, pool);
    Matrix x(3, 130);
    for (float& value : x.data) value = 0;
    x.row(1)[5] = 1e-40f;
    x.row(2)[129] = -1e-36f;
    for (const float value : Multiplied(multiplier, x, packed).data) {
      EXPECT_LT(std::abs(value), 1e-35f);
    }
    for (float value : Multiplied(multiplier, x, packed, 0, 1).data) EXPECT_EQ(value, 0);
  });
}

TEST(MultiplierTest, NoRowsAreNoWork) {
  ThreadPool pool(2);
  Multiplier multiplier(pool);
  const PackedMatrix packed = Packed(Random(4, 8, 1), {}, pool);
  multiplier.Multiply({Element::kFloat, nullptr, 0, 8, 8}, packed,
                      {Element::kFloat, nullptr, 0, 4, 4});
}

TEST(MultiplierTest, MisuseNamesTheShapes) {
  ThreadPool pool(2);
  Multiplier multiplier(pool);
  const PackedMatrix packed = Packed(Random(4, 8, 1), {}, pool);
  const Matrix x(2, 8);
  Matrix y(2, 4);
  const auto refused = [&](const Multiplier::Input& in, const PackedMatrix& w,
                           const Multiplier::Output& out, const std::string& text) {
    try {
      multiplier.Multiply(in, w, out);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(), HasSubstr(text));
    }
  };
  const Multiplier::Input in{Element::kFloat, x.data.data(), 2, 8, 8};
  const Multiplier::Output out{Element::kFloat, y.data.data(), 2, 4, 4};
  Multiplier::Input narrow = in;
  narrow.columns = 7;
  refused(narrow, packed, out, "[2, 7] with int8 [4, 8] in groups of 128 into [2, 4]");
  Multiplier::Output low = out;
  low.rows = 1;
  refused(in, packed, low, "into [1, 4]: y does not fit");
  Multiplier::Input overlapping = in;
  overlapping.stride = 4;
  refused(overlapping, packed, out, "rows overlap");
  Multiplier::Input absent = in;
  absent.data = nullptr;
  refused(absent, packed, out, "no data");
  refused(in, PackedMatrix(4, 8, {}), out, "the weights are not complete");
}

}  // namespace
}  // namespace llava::ops::cpu
