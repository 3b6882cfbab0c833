// What the emulated kernels' tests stand on: a barrier that is missing must show.

#include "tests/model/ops/host_block.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <stdexcept>

namespace llava::cuda {
namespace {

constexpr int kNumThreads = 128;
constexpr int kRounds = 3;
using Values = std::array<int, kNumThreads>;

// Every round, each thread takes what its opposite had before.
template <bool kAfterWriting, bool kAfterReading>
struct SwapKernel {
  static constexpr int kThreads = kNumThreads;
  struct Shared {
    Values values;
  };
  template <class Block>
  void operator()(Block& block, Shared& shared) const {
    block.AwaitEarlier();
    for (int round = 0; round < kRounds; ++round) {
      block.Each([&](int thread) { shared.values[thread] = (*values)[thread] + round; });
      if constexpr (kAfterWriting) block.Sync();
      block.Each([&](int thread) {
        (*values)[thread] = shared.values[kNumThreads - 1 - thread];
        if (thread == stumbles) throw std::runtime_error("stumbled");
      });
      if constexpr (kAfterReading) block.Sync();
    }
  }
  Values* values;
  int stumbles = -1;
};

// Block `waits` waits, block `leaves` has nothing to do, others forget both.
struct WaitingKernel {
  static constexpr int kThreads = kWarpLanes;
  struct Shared {};
  template <class Block>
  void operator()(Block& block, Shared&) const {
    if (block.x() == waits) block.AwaitEarlier();
    if (block.x() == leaves) block.LeaveIdle();
  }
  int waits, leaves;
};

class HostBlockTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    backwards = GetParam();
    std::iota(values_.begin(), values_.end(), 0);
  }
  void TearDown() override { backwards = false; }

  bool right() const {
    for (int i = 0; i < kNumThreads; ++i) {
      if (values_[i] != kNumThreads - 1 - i + kRounds * (kRounds - 1) / 2) return false;
    }
    return true;
  }

  Values values_;
};

TEST_P(HostBlockTest, BarriersAreKept) {
  HostLauncher()(SwapKernel<true, true>{&values_}, Grid{1, 1, 1});
  EXPECT_TRUE(right());
}

TEST_P(HostBlockTest, AMissingBarrierShows) {
  if (!Warps::kApart) GTEST_SKIP() << "warps are one under sanitizers";
  HostLauncher()(SwapKernel<false, true>{&values_}, Grid{1, 1, 1});
  EXPECT_FALSE(right()) << "read before all had written";
  SetUp();
  HostLauncher()(SwapKernel<true, false>{&values_}, Grid{1, 1, 1});
  EXPECT_FALSE(right()) << "written before all had read";
}

TEST_P(HostBlockTest, EveryBlockWaitsOrLeavesIdle) {
  const auto run = [](int waits, int leaves, int blocks) {
    HostLauncher()(WaitingKernel{.waits = waits, .leaves = leaves}, Grid{blocks, 1, 1});
  };
  EXPECT_NO_THROW(run(0, 1, 2));
  EXPECT_THROW(run(0, 0, 1), std::logic_error) << "both";
  EXPECT_THROW(run(0, 1, 3), std::logic_error) << "the third one neither";
  EXPECT_THROW(run(1, 0, 1), std::logic_error) << "nobody waits";
}

TEST_P(HostBlockTest, WhatAWarpThrowsIsTold) {
  EXPECT_THROW(HostLauncher()(SwapKernel<true, true>{&values_, 77}, Grid{1, 1, 1}),
               std::runtime_error);
  SetUp();
  HostLauncher()(SwapKernel<true, true>{&values_}, Grid{1, 1, 1});
  EXPECT_TRUE(right()) << "the next block begins anew";
}

INSTANTIATE_TEST_SUITE_P(BothWays, HostBlockTest, testing::Bool(), [](const auto& way) {
  return std::string(way.param ? "Backwards" : "Forwards");
});

// Of 7B and 13B on 132 multiprocessors: blocks that stay are for shapes that keep them all busy.
TEST(StreamsEvenlyTest, NotWhereMostBlocksWouldWaitForAFew) {
  const auto evenly = [](int rows, bool gated) {
    PackedProductArgs args{};
    args.weight.rows = rows;
    args.gated = gated;
    return StreamsEvenly(args, 132);
  };
  EXPECT_TRUE(evenly(4096, false));      // 128 panels, one turn
  EXPECT_TRUE(evenly(3 * 4096, false));  // 384, three of 132
  EXPECT_TRUE(evenly(2 * 11008, true));  // 344 pairs, three
  EXPECT_FALSE(evenly(5120, false));     // 160, two: 61 %
  EXPECT_TRUE(evenly(32, false));
}

}  // namespace
}  // namespace llava::cuda
