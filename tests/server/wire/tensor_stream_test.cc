#include "server/wire/tensor_stream.h"

#include <gtest/gtest.h>

#include <utility>

namespace llava {
namespace {

std::string Bytes(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 131 + i / 251);
  return bytes;
}

TEST(TensorStreamTest, WhatIsSplitComesTogetherAgain) {
  for (const int64_t rows : {1, 255, 256, 257, 1000}) {
    const std::string bytes = Bytes(static_cast<size_t>(rows) * 512 * 2);
    const auto header =
        DescribeTensor(v1::DATA_TYPE_BFLOAT16, std::vector<int64_t>{rows, 512}, bytes);
    auto assembler = TensorAssembler::Create(header);
    ASSERT_TRUE(assembler.ok()) << assembler.status();
    size_t total = 0;
    for (const std::string_view chunk : SplitChunks(bytes)) {
      EXPECT_LE(chunk.size(), kMaxChunkBytes);
      total += chunk.size();
      ASSERT_TRUE(assembler->Add(chunk).ok());
    }
    EXPECT_EQ(total, bytes.size());
    const auto result = std::move(*assembler).Finish();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(*result, bytes);
  }
}

TEST(TensorStreamTest, DamageIsDataLossAndACutIsInvalid) {
  const std::string bytes = Bytes(64);
  const auto header = DescribeTensor(v1::DATA_TYPE_FLOAT32, std::vector<int64_t>{4, 4}, bytes);
  auto damaged = TensorAssembler::Create(header);
  std::string wrong = bytes;
  wrong[10] ^= 1;
  ASSERT_TRUE(damaged->Add(wrong).ok());
  EXPECT_EQ(std::move(*damaged).Finish().status().code(), absl::StatusCode::kDataLoss);

  auto cut = TensorAssembler::Create(header);
  ASSERT_TRUE(cut->Add(bytes.substr(0, 63)).ok());
  EXPECT_EQ(std::move(*cut).Finish().status().code(), absl::StatusCode::kInvalidArgument);

  auto surplus = TensorAssembler::Create(header);
  EXPECT_EQ(surplus->Add(bytes + "x").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(surplus->Add(std::string(kMaxChunkBytes + 1, 'x')).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TensorStreamTest, HeadersThatLieAreRefusedBeforeAnyAllocation) {
  const auto refused = [](v1::DataType dtype, std::vector<int64_t> shape, uint64_t size_bytes) {
    v1::TensorHeader header;
    header.set_dtype(dtype);
    header.mutable_shape()->Assign(shape.begin(), shape.end());
    header.set_size_bytes(size_bytes);
    return TensorAssembler::Create(header).status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused(v1::DATA_TYPE_UNSPECIFIED, {2, 2}, 16));
  EXPECT_TRUE(refused(v1::DATA_TYPE_FLOAT32, {}, 4));
  EXPECT_TRUE(refused(v1::DATA_TYPE_FLOAT32, {2, -2}, 16));
  EXPECT_TRUE(refused(v1::DATA_TYPE_FLOAT32, {2, 0}, 0));
  EXPECT_TRUE(refused(v1::DATA_TYPE_FLOAT32, {2, 2}, 15));
  EXPECT_TRUE(refused(v1::DATA_TYPE_FLOAT32, {int64_t{1} << 62, int64_t{1} << 62}, 0));
  EXPECT_FALSE(refused(v1::DATA_TYPE_FLOAT16, {2, 2}, 8));
}

}  // namespace
}  // namespace llava
