#include "model/llava/philox.h"

#include <cmath>
#include <cstdint>
#include <set>

#include <gtest/gtest.h>

namespace llava {
namespace {

using Words = std::array<uint32_t, 4>;

// Known answers of the authors' library Random123 (kat_vectors).
TEST(PhiloxTest, GivesTheKnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(UniformAtTest, UsesEveryBitOfBothNumbers) {
  std::set<double> seen = {UniformAt(0, 0)};
  for (int bit = 0; bit < 64; ++bit) {
    seen.insert(UniformAt(uint64_t{1} << bit, 0));
    seen.insert(UniformAt(0, uint64_t{1} << bit));
  }
  EXPECT_EQ(seen.size(), 129u);
}

TEST(UniformAtTest, IsUniform) {
  constexpr int kDraws = 100000, kBins = 20;
  int count[kBins] = {};
  double mean = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double u = UniformAt(7, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    mean += u / kDraws;
    ++count[static_cast<int>(u * kBins)];
  }
  EXPECT_NEAR(mean, 0.5, 0.005);
  for (const int n : count) EXPECT_NEAR(n, kDraws / kBins, 350);
}

}  // namespace
}  // namespace llava
