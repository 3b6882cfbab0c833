#include "model/data/scenes/random.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace llava {
namespace {

TEST(RandomTest, IsSplitMixOnANamedStream) {
  // First three numbers of SplitMix64 from the state Mix(Mix(Mix(seed + step) ^ stream * step) +
  // purpose), computed apart from this code.
  Random random(1, 2, 3);
  EXPECT_EQ(random.Bits(), 9791538029491795838u);
  EXPECT_EQ(random.Bits(), 12807048236640490451u);
  EXPECT_EQ(random.Bits(), 1025080491002783666u);
}

TEST(RandomTest, NamesGiveStreamsOfTheirOwn) {
  EXPECT_EQ(Random(5, 6, 7).Bits(), Random(5, 6, 7).Bits());
  EXPECT_NE(Random(5, 6, 7).Bits(), Random(6, 6, 7).Bits());
  EXPECT_NE(Random(5, 6, 7).Bits(), Random(5, 7, 7).Bits());
  EXPECT_NE(Random(5, 6, 7).Bits(), Random(5, 6, 8).Bits());
  EXPECT_NE(Random(0, 1).Bits(), Random(1, 0).Bits());
}

TEST(RandomTest, BelowIsUniformAndStaysInside) {
  Random random(9);
  std::array<int, 7> counts{};
  for (int i = 0; i < 70000; ++i) ++counts.at(random.Below(7));
  for (const int count : counts) EXPECT_NEAR(count, 10000, 400);  // 4.3 standard deviations
  EXPECT_EQ(random.Below(1), 0u);
}

TEST(RandomTest, BetweenTakesBothEnds) {
  Random random(10);
  bool low = false, high = false;
  for (int i = 0; i < 1000; ++i) {
    const int value = random.Between(-4, 4);
    ASSERT_GE(value, -4);
    ASSERT_LE(value, 4);
    low |= value == -4;
    high |= value == 4;
  }
  EXPECT_TRUE(low && high);
}

TEST(RandomTest, BellHasTheDeviationAskedFor) {
  Random random(11);
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double value = random.Bell(1000);
    ASSERT_LE(std::abs(value), 3470);
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / kDraws, 0, 15);
  EXPECT_NEAR(std::sqrt(squares / kDraws), 1000, 10);
}

TEST(RandomTest, WeightedFollowsTheWeights) {
  Random random(12);
  const std::array<double, 4> weights = {1, 0, 3, 0};
  std::array<int, 4> counts{};
  for (int i = 0; i < 40000; ++i) ++counts.at(random.Weighted(weights));
  EXPECT_EQ(counts[1] + counts[3], 0);
  EXPECT_NEAR(counts[2], 30000, 400);
}

TEST(RandomTest, ShuffleReachesEveryOrder) {
  Random random(13);
  std::array<int, 6> counts{};
  for (int i = 0; i < 6000; ++i) {
    std::vector<int> values = {0, 1, 2};
    random.Shuffle(values);
    ++counts.at(values[0] * 2 + (values[1] > values[2]));
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 130);
}

}  // namespace
}  // namespace llava
