// Packed matrices as bytes and back.
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/ops/gemm_cases.h"

namespace llava::ops::cpu {
namespace {

using ::testing::HasSubstr;

constexpr size_t kHeader = 64;

std::vector<uint8_t> Stored(const PackedMatrix& matrix) {
  std::vector<uint8_t> bytes(static_cast<size_t>(matrix.stored_bytes()));
  matrix.Store(bytes);
  return bytes;
}

std::string ErrorOfLoading(const std::vector<uint8_t>& bytes) {
  try {
    PackedMatrix::Load(bytes);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

PackedMatrix WithOutliers(ThreadPool& pool) {
  PackedMatrix matrix = Packed(Random(70, 1024, 1, 0.001), {WeightFormat::kInt4, 64, true}, pool);
  EXPECT_GT(matrix.num_outliers(), 10);
  return matrix;
}

TEST(StoredMatrixTest, ReadsBackToTheBit) {
  ThreadPool pool(2);
  Multiplier multiplier(pool);
  const auto memory = std::make_shared<WeightMemory>();
  for (const FormatCase& format : Formats()) {
    for (const int64_t rows : {1, 64, 103}) {
      SCOPED_TRACE(format.name + ", rows " + std::to_string(rows));
      const PackedMatrix matrix = Packed(Random(rows, 333, 1, 0.003), format.options, pool);
      const std::vector<uint8_t> bytes = Stored(matrix);
      const PackedMatrix read = PackedMatrix::Load(bytes, memory);
      EXPECT_EQ(read.Describe(), matrix.Describe());
      EXPECT_TRUE(read.complete());
      EXPECT_EQ(read.num_outliers(), matrix.num_outliers());
      EXPECT_EQ(read.bytes(), matrix.bytes());
      EXPECT_EQ(Unpacked(read).data, Unpacked(matrix).data);
      const Matrix x = Random(5, 333, 2);
      EXPECT_EQ(Multiplied(multiplier, x, read).data, Multiplied(multiplier, x, matrix).data);
      EXPECT_EQ(Stored(read), bytes);
    }
  }
}

TEST(StoredMatrixTest, OnlyWholeMatricesIntoTheRightSize) {
  ThreadPool pool(1);
  const PackedMatrix whole = WithOutliers(pool);
  std::vector<uint8_t> bytes(static_cast<size_t>(whole.stored_bytes()) + 1);
  EXPECT_THROW(whole.Store(bytes), std::invalid_argument);
  const PackedMatrix empty(32, 64, {WeightFormat::kInt8});
  bytes.resize(static_cast<size_t>(empty.stored_bytes()));
  EXPECT_THROW(empty.Store(bytes), std::invalid_argument);
}

TEST(StoredMatrixTest, RefusesEveryTruncation) {
  ThreadPool pool(1);
  const std::vector<uint8_t> bytes = Stored(WithOutliers(pool));
  for (const size_t size : {size_t{0}, size_t{1}, kHeader - 1, kHeader, bytes.size() / 2,
                            bytes.size() - 8, bytes.size() - 1}) {
    const std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<int64_t>(size));
    EXPECT_THAT(ErrorOfLoading(cut), HasSubstr("cut off")) << size;
  }
  std::vector<uint8_t> longer = bytes;
  longer.push_back(0);
  EXPECT_THAT(ErrorOfLoading(longer), HasSubstr("does not fill"));
}

TEST(StoredMatrixTest, RefusesWhatContradictsItself) {
  ThreadPool pool(1);
  const PackedMatrix matrix = WithOutliers(pool);
  const std::vector<uint8_t> bytes = Stored(matrix);
  const size_t outliers = bytes.size() - static_cast<size_t>(matrix.num_outliers()) * 8;
  const size_t counts = outliers - static_cast<size_t>(matrix.layout().panels) * 4;
  struct Damage {
    size_t at;
    uint32_t value;
    const char* error;
  };
  const Damage damages[] = {
      {0, 0x78787878, "this program reads panel32.v1"},
      {16, 9, "format has the number 9"},
      {16, 0, "contradicts"},                     // bfloat16 in groups
      {20, 0, "contradicts"},                     // int4 without
      {20, 48, "in groups of 48"},                //
      {16, 1, "panels of"},                       // int8
      {24, 0, "shape [0, 1024]"},                 // rows
      {24, 97, "cut off"},                        //
      {28, 0x80000000, "shape"},                  // beyond 63 bits
      {32, 512, "panels of"},                     // depth
      {48, 0x7FFFFFFF, "cut off"},                // outliers
      {52, 0xFFFFFFFF, "cut off"},                //
      {56, 1, "contradicts"},                     //
      {counts, 0xFFFFFFFF, "more outliers"},      //
      {counts, 0, "out of place"},                // they become another panel's
      {counts + 8, 0, "fewer outliers"},          //
      {outliers, 1024 * 32, "out of place"},      // behind the last column of W
      {outliers, 1023 * 32 + 31, "out of place"}  // behind the one that follows
  };
  for (const Damage& damage : damages) {
    std::vector<uint8_t> damaged = bytes;
    std::memcpy(damaged.data() + damage.at, &damage.value, sizeof(damage.value));
    EXPECT_THAT(ErrorOfLoading(damaged), HasSubstr(damage.error))
        << "byte " << damage.at << " = " << damage.value;
  }
  // In the rows that only fill the last panel.
  const int64_t of_last = matrix.outliers(2).size;
  ASSERT_GT(of_last, 0);
  std::vector<uint8_t> damaged = bytes;
  const uint32_t where = 31;
  std::memcpy(damaged.data() + damaged.size() - 8, &where, sizeof(where));
  EXPECT_THAT(ErrorOfLoading(damaged), HasSubstr("out of place"));
}

}  // namespace
}  // namespace llava::ops::cpu
