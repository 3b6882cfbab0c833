#include "server/vision/byte_budget.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace llava {
namespace {

class ByteBudgetTest : public ::testing::Test {
 protected:
  Metrics metrics_{"vision"};
  prometheus::Gauge& gauge_ = metrics_.Gauge("llava_vision_queue_bytes", "Held");
};

TEST_F(ByteBudgetTest, GivesBackWhatIsHeld) {
  ByteBudget budget(100, gauge_);
  auto first = budget.Take(60);
  ASSERT_TRUE(first);
  EXPECT_FALSE(budget.Take(41));
  auto second = budget.Take(40);
  ASSERT_TRUE(second);
  EXPECT_FALSE(budget.Take(1));
  EXPECT_EQ(gauge_.Value(), 100);
  second->ShrinkTo(10);
  second->ShrinkTo(20);  // never grows
  EXPECT_EQ(budget.held(), 70u);
  first.reset();
  EXPECT_EQ(budget.held(), 10u);
  second.reset();
  EXPECT_EQ(budget.held(), 0u);
  EXPECT_EQ(gauge_.Value(), 0);
}

TEST_F(ByteBudgetTest, AloneAnythingFits) {
  ByteBudget budget(100, gauge_);
  auto large = budget.Take(1000);
  ASSERT_TRUE(large);
  EXPECT_FALSE(budget.Take(1));
  large.reset();
  EXPECT_TRUE(budget.Take(1));
}

TEST_F(ByteBudgetTest, HoldsMoveAndSplitAndOutliveTheBudget) {
  std::optional<ByteBudget> budget(std::in_place, 100, gauge_);
  auto whole = budget->Take(90);
  ByteBudget::Hold part = whole->Split(30);
  EXPECT_EQ(budget->held(), 90u);
  whole.reset();
  EXPECT_EQ(budget->held(), 30u);
  ByteBudget::Hold moved;
  moved = std::move(part);
  EXPECT_EQ(budget->held(), 30u);
  budget.reset();
  moved.ShrinkTo(0);
  EXPECT_EQ(gauge_.Value(), 0);
}

TEST_F(ByteBudgetTest, NeverLetsMoreInThanThereMayBe) {
  ByteBudget budget(1000, gauge_);
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 4; ++worker) {
    threads.emplace_back([&budget] {
      for (int i = 0; i < 5000; ++i) {
        const auto hold = budget.Take(300);
        EXPECT_LE(budget.held(), 1000u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget.held(), 0u);
}

}  // namespace
}  // namespace llava
