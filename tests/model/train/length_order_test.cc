#include "model/train/length_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <stdexcept>

namespace llava {
namespace {

std::vector<int64_t> Lengths(int pictures, int texts) {
  Random random(5);
  std::vector<int64_t> lengths;
  for (int i = 0; i < pictures; ++i) lengths.push_back(random.Between(5, 400));
  for (int i = 0; i < texts; ++i) lengths.push_back(-random.Between(5, 400));
  random.Shuffle(lengths);
  return lengths;
}

std::vector<int64_t> Order(const std::vector<int64_t>& lengths, int64_t batch, int64_t chunks,
                           uint64_t seed = 1) {
  Random random(seed);
  return GroupByModalityAndLength(lengths, batch, chunks, random);
}

TEST(LengthOrderTest, IsAPermutationThatDependsOnTheSeed) {
  const std::vector<int64_t> lengths = Lengths(203, 57);
  auto order = Order(lengths, 4, 8);
  EXPECT_EQ(Order(lengths, 4, 8), order);
  EXPECT_NE(Order(lengths, 4, 8, 2), order);
  std::sort(order.begin(), order.end());
  std::vector<int64_t> all(lengths.size());
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(order, all);
}

TEST(LengthOrderTest, MegabatchesAreOfOneKind) {
  const int64_t batch = 4, chunks = 8, mega = batch * chunks;
  const std::vector<int64_t> lengths = Lengths(203, 57);
  const auto order = Order(lengths, batch, chunks);
  const size_t whole = 203 / mega + 57 / mega;  // each kind's last one stands apart
  std::set<bool> kinds;
  for (size_t i = 0; i < whole; ++i) {
    const bool picture = lengths[order[i * mega]] > 0;
    kinds.insert(picture);
    for (int64_t j = 0; j < mega; ++j) EXPECT_EQ(lengths[order[i * mega + j]] > 0, picture);
  }
  EXPECT_EQ(kinds.size(), 2u);
  EXPECT_TRUE(std::is_sorted(order.begin() + whole * mega, order.end()));
}

TEST(LengthOrderTest, MicroBatchesOfAStepAreAboutEquallyLong) {
  const int64_t batch = 8, chunks = 4, mega = batch * chunks;
  const std::vector<int64_t> lengths = Lengths(10 * mega, 0);
  const auto order = Order(lengths, batch, chunks);
  const auto sum = [&](size_t begin) {
    int64_t total = 0;
    for (int64_t i = 0; i < batch; ++i) total += lengths[order[begin + i]];
    return static_cast<double>(total);
  };
  for (size_t step = 0; step < 10; ++step) {
    double least = 1e9, most = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const size_t begin = step * mega + chunk * batch;
      least = std::min(least, sum(begin));
      most = std::max(most, sum(begin));
      for (int64_t i = 1; i < batch; ++i) {  // falling within a micro-batch
        EXPECT_GE(lengths[order[begin + i - 1]], lengths[order[begin + i]]);
      }
    }
    EXPECT_LT(most / least, 1.1) << step;
  }
}

// One chunk and all samples in one megabatch: nothing is left to chance.
TEST(LengthOrderTest, SortsAndDealsOut) {
  EXPECT_THAT(Order({3, 9, 5, 7}, 4, 1), testing::ElementsAre(1, 3, 2, 0));
  // 9 | 7, then 5 to the second, whose sum is smaller, and 3 to the first.
  EXPECT_THAT(Order({3, 9, 5, 7}, 2, 2), testing::ElementsAre(1, 0, 3, 2));
  // Three for two chunks: by turns.
  EXPECT_THAT(Order({3, 9, 5}, 2, 2), testing::ElementsAre(1, 0, 2));
}

TEST(LengthOrderTest, OneKindAloneIsSortedByItsLength) {
  EXPECT_THAT(Order({-3, -9, -5, -7}, 4, 1), testing::ElementsAre(1, 3, 2, 0));
  EXPECT_TRUE(Order({}, 4, 1).empty());
  EXPECT_THROW(Order({3, 0}, 4, 1), std::invalid_argument);
}

}  // namespace
}  // namespace llava
