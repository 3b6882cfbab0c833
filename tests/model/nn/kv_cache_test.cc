#include "model/nn/kv_cache.h"

#include <stdexcept>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

at::Tensor Rows(int64_t begin, int64_t count) {  // row i is full of i
  const DecoderConfig config = TinyDecoderConfig();
  return at::arange(begin, begin + count, at::kFloat)
      .view({count, 1, 1})
      .expand({count, config.num_kv_heads, config.head_dim});
}

void Extend(KvCache& cache, int64_t begin, int64_t count) {
  for (int64_t layer = 0; layer < TinyDecoderConfig().num_layers; ++layer) {
    cache.Append(layer, Rows(begin, count), -Rows(begin, count));
  }
  cache.Advance(count);
}

TEST(KvCacheTest, KeepsEverythingWhileItGrows) {
  KvCache cache(TinyDecoderConfig(), at::kCPU, at::kFloat);
  int64_t length = 0;
  for (const int64_t count : {1, 2, 60, 1, 1, 200, 3}) {
    Extend(cache, length, count);
    length += count;
    EXPECT_EQ(cache.length(), length);
  }
  const auto [k, v] = cache.Append(1, Rows(length, 1), -Rows(length, 1));
  EXPECT_TRUE(at::equal(k, Rows(0, length + 1)));
  EXPECT_TRUE(at::equal(v, -Rows(0, length + 1)));
}

TEST(KvCacheTest, DoesNotCopyInEveryStep) {
  KvCache cache(TinyDecoderConfig(), at::kCPU, at::kFloat);
  int moves = 0;
  const void* place = nullptr;
  for (int64_t i = 0; i < 2000; ++i) {
    const void* now = cache.Append(0, Rows(i, 1), Rows(i, 1)).first.const_data_ptr();
    moves += now != place;
    place = now;
    cache.Advance(1);
  }
  EXPECT_LE(moves, 7);
}

TEST(KvCacheTest, AnAppendThatIsNotAdvancedIsWrittenOver) {
  KvCache cache(TinyDecoderConfig(), at::kCPU, at::kFloat);
  Extend(cache, 0, 3);
  cache.Append(0, Rows(77, 2), Rows(77, 2));
  const auto [k, v] = cache.Append(0, Rows(3, 1), -Rows(3, 1));
  EXPECT_TRUE(at::equal(k, Rows(0, 4)));
  EXPECT_TRUE(at::equal(v, -Rows(0, 4)));
}

TEST(KvCacheTest, Truncates) {
  KvCache cache(TinyDecoderConfig(), at::kCPU, at::kFloat);
  Extend(cache, 0, 10);
  cache.Truncate(4);
  Extend(cache, 4, 2);
  EXPECT_TRUE(at::equal(cache.Append(1, Rows(6, 1), Rows(6, 1)).first, Rows(0, 7)));
  EXPECT_THROW(cache.Truncate(7), std::invalid_argument);
  EXPECT_THROW(cache.Truncate(-1), std::invalid_argument);
}

TEST(KvCacheTest, IsFloat32OnTheCpu) {
  KvCache cache(TinyDecoderConfig(), at::kCPU, at::kBFloat16);
  Extend(cache, 0, 100);
  EXPECT_EQ(cache.Append(0, Rows(100, 1), Rows(100, 1)).first.scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace llava
