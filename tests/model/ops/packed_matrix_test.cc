#include "model/ops/cpu/packed_matrix.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/ops/gemm_cases.h"

namespace llava::ops::cpu {
namespace {

using ::testing::HasSubstr;

TEST(PackedMatrixTest, HoldsWhatItWasGiven) {
  ThreadPool pool(2);
  for (const FormatCase& format : Formats()) {
    SCOPED_TRACE(format.name);
    const Matrix w = Random(45, 333, 1, 0.002);
    const Matrix stored = Unpacked(Packed(w, format.options, pool));
    const int64_t group = format.options.group == 0 ? 1 : format.options.group;
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t k = 0; k < w.columns; ++k) {
        float most = 0;  // of the group
        for (int64_t j = k / group * group; j < std::min((k / group + 1) * group, w.columns); ++j) {
          most = std::max(most, std::abs(w.row(i)[j]));
        }
        const float coarseness = format.options.format == WeightFormat::kFloat      ? 0
                                 : format.options.format == WeightFormat::kBFloat16 ? most / 256
                                 : format.options.format == WeightFormat::kInt8     ? most / 250
                                                                                    : most / 4.9f;
        ASSERT_NEAR(stored.row(i)[k], w.row(i)[k], coarseness) << i << " " << k;
      }
    }
  }
}

TEST(PackedMatrixTest, TakesItsRowsInAnyPieces) {
  ThreadPool pool(2);
  for (const FormatCase& format : Formats()) {
    SCOPED_TRACE(format.name);
    const Matrix w = Random(103, 200, 1, 0.003);
    const PackedMatrix whole = Packed(w, format.options, pool);
    PackedMatrix pieces(w.rows, w.columns, format.options);
    int64_t row = 0;
    for (const int64_t rows : {1, 40, 7, 16, 32, 7}) {
      EXPECT_FALSE(pieces.complete());
      pieces.Append(pool, SourceElement::kFloat, w.row(row), rows, w.columns);
      row += rows;
    }
    EXPECT_TRUE(pieces.complete());
    EXPECT_EQ(Unpacked(pieces).data, Unpacked(whole).data);
    EXPECT_EQ(pieces.num_outliers(), whole.num_outliers());
    EXPECT_EQ(0, std::memcmp(pieces.panel(0), whole.panel(0),
                             whole.layout().panels * whole.layout().panel_bytes));
  }
}

TEST(PackedMatrixTest, TakesBFloat16AndHalf) {
  ThreadPool pool(2);
  const std::vector<float> values = {0, 1, -2, 0.5f, 1.5f, -0.125f, 6.103515625e-5f, -3.25f};
  const std::vector<uint16_t> bfloat16 = {0,      0x3F80, 0xC000, 0x3F00,
                                          0x3FC0, 0xBE00, 0x3880, 0xC050};
  const std::vector<uint16_t> half = {0, 0x3C00, 0xC000, 0x3800, 0x3E00, 0xB000, 0x0400, 0xC280};
  for (const auto& [element, source] :
       {std::pair{SourceElement::kBFloat16, &bfloat16}, std::pair{SourceElement::kHalf, &half}}) {
    PackedMatrix packed(2, 4, {WeightFormat::kBFloat16});
    packed.Append(pool, element, source->data(), 2, 4);
    EXPECT_EQ(Unpacked(packed).data, values);
  }
  const uint16_t smallest = 1, infinite = 0x7C00;  // 2^-24
  PackedMatrix one(1, 1, {WeightFormat::kBFloat16}), other(1, 1, {WeightFormat::kBFloat16});
  one.Append(pool, SourceElement::kHalf, &smallest, 1, 1);
  EXPECT_EQ(Unpacked(one).data[0], 0x1p-24f);
  other.Append(pool, SourceElement::kHalf, &infinite, 1, 1);
  EXPECT_EQ(Unpacked(other).data[0], std::numeric_limits<float>::infinity());
}

// Weights in bfloat16 only change places: as if they had been widened and rounded.
TEST(PackedMatrixTest, BFloat16StaysAsItIs) {
  ThreadPool pool(2);
  for (const auto& [rows, depth] : {std::pair{70, 301}, std::pair{32, 256}, std::pair{5, 1024}}) {
    const int64_t stride = depth + 3;
    std::vector<uint16_t> source(static_cast<size_t>(rows * stride));
    std::vector<float> wide(source.size());
    uint32_t state = 1;
    for (size_t i = 0; i < source.size(); ++i) {
      state = state * 1664525 + 1013904223;
      source[i] = static_cast<uint16_t>(state >> 16 & 0xBF7F);  // any finite one, subnormals too
      wide[i] = std::bit_cast<float>(uint32_t{source[i]} << 16);
    }
    PackedMatrix whole(rows, depth, {WeightFormat::kBFloat16}),
        pieces(rows, depth, {WeightFormat::kBFloat16});
    whole.Append(pool, SourceElement::kFloat, wide.data(), rows, stride);
    for (int64_t row = 0; row < rows;) {
      const int64_t count = std::min<int64_t>(rows - row, 1 + row * 7 % 40);
      pieces.Append(pool, SourceElement::kBFloat16, source.data() + row * stride, count, stride);
      row += count;
    }
    EXPECT_TRUE(pieces.complete());
    EXPECT_EQ(0, std::memcmp(pieces.panel(0), whole.panel(0),
                             whole.layout().panels * whole.layout().panel_bytes));
  }
}

TEST(PackedMatrixTest, OutliersAreExactAndFew) {
  ThreadPool pool(2);
  Matrix w = Random(64, 1024, 1);
  w.row(3)[500] = 100;
  w.row(40)[0] = -77;
  const PackedMatrix packed = Packed(w, {WeightFormat::kInt4, 64, true}, pool);
  const Matrix stored = Unpacked(packed);
  EXPECT_EQ(stored.row(3)[500], 100);
  EXPECT_EQ(stored.row(40)[0], -77);
  EXPECT_NEAR(stored.row(3)[501], w.row(3)[501], 0.4);
  EXPECT_LT(packed.num_outliers(), 64 * 1024 / 1000);

  for (float& value : w.data) value = value * value * value * value * value;  // many are far away
  EXPECT_LE(Packed(w, {WeightFormat::kInt4, 64, true}, pool).num_outliers(), 64 * 3);
  EXPECT_EQ(Packed(w, {WeightFormat::kInt4, 64, false}, pool).num_outliers(), 0);
}

TEST(PackedMatrixTest, WeightsThatAreNotFiniteStayInTheirGroup) {
  ThreadPool pool(2);
  Matrix w = Random(4, 256, 1);
  w.row(1)[3] = std::numeric_limits<float>::infinity();
  w.row(2)[200] = std::nanf("");
  for (const FormatCase& format : Formats()) {
    SCOPED_TRACE(format.name);
    const Matrix stored = Unpacked(Packed(w, format.options, pool));
    EXPECT_FALSE(std::isfinite(stored.row(1)[3]));
    EXPECT_FALSE(std::isfinite(stored.row(2)[200]));
    EXPECT_TRUE(std::isfinite(stored.row(1)[128]) && std::isfinite(stored.row(2)[0]) &&
                std::isfinite(stored.row(0)[3]) && std::isfinite(stored.row(3)[200]));
  }
}

TEST(PackedMatrixTest, SizesAreWhatIsPromised) {
  ThreadPool pool(2);
  const Matrix w = Random(256, 1024, 1);
  const double weights = 256 * 1024;
  const auto bits = [&](const PackedMatrix::Options& options) {
    return static_cast<double>(Packed(w, options, pool).bytes()) * 8 / weights;
  };
  EXPECT_EQ(bits({WeightFormat::kFloat}), 32);
  EXPECT_EQ(bits({WeightFormat::kBFloat16}), 16);
  EXPECT_NEAR(bits({WeightFormat::kInt8}), 8.125, 0.02);
  EXPECT_NEAR(bits({WeightFormat::kInt4}), 4.25, 0.02);
  EXPECT_NEAR(bits({WeightFormat::kInt4, 32}), 4.5, 0.02);
}

TEST(PackedMatrixTest, MatricesShareMemory) {
  ThreadPool pool(2);
  const auto memory = std::make_shared<WeightMemory>();
  PackedMatrix a(32, 128, {WeightFormat::kBFloat16}, memory);
  PackedMatrix b(32, 128, {WeightFormat::kBFloat16}, memory);
  EXPECT_EQ(b.panel(0), a.panel(1)) << "one behind the other";
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.panel(0)) % (2 << 20), 0u);
  uint8_t* large = memory->Allocate(size_t{100} << 20);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large) % (2 << 20), 0u);
  large[(size_t{100} << 20) - 1] = 1;
}

TEST(PackedMatrixTest, MisuseNamesTheShapes) {
  ThreadPool pool(2);
  const auto refused = [](const auto& act, const std::string& text) {
    try {
      act();
      ADD_FAILURE() << "accepted: " << text;
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(), HasSubstr(text));
    }
  };
  refused([] { PackedMatrix(0, 8, {}); }, "[0, 8]");
  refused([] { PackedMatrix(4, int64_t{1} << 40, {}); }, "[4, 1099511627776]");
  refused([] { PackedMatrix(4, 8, {WeightFormat::kInt8, 48}); }, "groups of 48");
  refused([] { PackedMatrix(4, 8, {WeightFormat::kBFloat16, 32}); }, "no groups");
  const std::vector<float> rows(40);
  PackedMatrix packed(4, 8, {});
  const auto append = [&](int64_t count, int64_t stride) {
    packed.Append(pool, SourceElement::kFloat, rows.data(), count, stride);
  };
  append(3, 8);
  refused([&] { append(2, 8); }, "2 rows, 8 apart, behind 3 of int8 [4, 8]");
  refused([&] { append(1, 7); }, "7 apart");
  float out[8];
  refused([&] { packed.Unpack(0, out); }, "of which 3 rows are there");
  append(1, 8);
  refused([&] { packed.Unpack(4, out); }, "row 4 of int8 [4, 8]");
}

}  // namespace
}  // namespace llava::ops::cpu
