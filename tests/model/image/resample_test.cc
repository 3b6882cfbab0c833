// The passes of the resampler, by vectors and without.
#include "model/image/resample.h"

#include <gtest/gtest.h>

#include <random>

namespace llava {
namespace {

TEST(ResampleTest, VectorsGiveTheSameBits) {
  if (BestSimd() == Simd::kNone) GTEST_SKIP() << "no vectors on this processor";
  std::mt19937 random(4);
  const auto draw = [&](int least, int most) {
    return std::uniform_int_distribution<int>(least, most)(random);
  };
  for (int round = 0; round < 400; ++round) {
    const int width = draw(1, round % 4 == 0 ? 900 : 40), height = draw(1, 30);
    std::vector<uint8_t> pixels(static_cast<size_t>(width) * height * 3);
    for (uint8_t& value : pixels) {
      value = static_cast<uint8_t>(round % 3 == 0 ? 255 * draw(0, 1) : draw(0, 255));
    }
    const Colour margin = {static_cast<uint8_t>(draw(0, 255)), 116, 104};
    // Pictures in the middle of a longer line, and a part of what is drawn.
    const auto taps_of = [&](int picture) {
      const int before = round % 2 == 0 ? 0 : draw(0, 30);
      const Axis axis{picture + 2 * before, before, picture};
      const int out = draw(1, 70), begin = draw(0, out - 1);
      return BicubicTaps(axis, out, begin, draw(1, out - begin));
    };
    const RgbRows rows{pixels.data(), width, height};
    const auto across = taps_of(width), down = taps_of(height);
    ASSERT_EQ(ResampleRows(rows, across, margin), ResampleRows(rows, across, margin, Simd::kNone))
        << width << " to " << across.size();
    ASSERT_EQ(ResampleColumns(rows, 0, down, margin),
              ResampleColumns(rows, 0, down, margin, Simd::kNone))
        << height << " to " << down.size();
  }
}

}  // namespace
}  // namespace llava
