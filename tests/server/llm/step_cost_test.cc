#include "server/llm/step_cost.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>
#include <vector>

namespace llava {
namespace {

struct Device {
  double fixed, row, key;
  double operator()(const StepWork& work) const {
    return fixed + row * static_cast<double>(work.rows()) + key * static_cast<double>(work.keys);
  }
};

StepWork Decode(int64_t rows, int64_t computed) {
  return {.decode_rows = rows, .keys = rows * KeysOf(computed, 1)};
}
StepWork Mixed(int64_t answers, int64_t rows, int64_t computed) {
  StepWork work = Decode(answers, 100);
  work.prompt_rows = rows;
  work.keys += KeysOf(computed, rows);
  return work;
}

TEST(KeysOfTest, CountsEachRowsOwnPast) {
  EXPECT_EQ(KeysOf(0, 1), 1);
  EXPECT_EQ(KeysOf(0, 4), 1 + 2 + 3 + 4);
  EXPECT_EQ(KeysOf(10, 3), 11 + 12 + 13);
  EXPECT_EQ(KeysOf(10, 0), 0);
}

TEST(StepCostTest, ForetellsDevicesOfEveryKind) {
  for (const Device& device : std::vector<Device>{{0.050, 0.0015, 1e-6},  // 1.1B on two cores
                                                  {0.0002, 0.00004, 1e-8},
                                                  {0.005, 0.00001, 0},
                                                  {0, 0.002, 1e-6}}) {
    StepCost cost;
    EXPECT_EQ(cost.Seconds(Decode(1, 10)), 0);
    for (int i = 0; i < 100; ++i)
      cost.Observe(Decode(1 + i % 8, 100 + i), device(Decode(1 + i % 8, 100 + i)));
    for (int64_t done = 0; done < 2000; done += 50) {
      cost.Observe(Mixed(8, 50, done), device(Mixed(8, 50, done)));
    }
    for (const StepWork& work : {Decode(3, 200), Decode(8, 20), Mixed(8, 80, 0), Mixed(8, 40, 2500),
                                 Mixed(2, 100, 1000)}) {
      EXPECT_NEAR(cost.Seconds(work) / device(work), 1, 0.02);
    }
    EXPECT_EQ(cost.most_rows(), 58);
  }
}

TEST(StepCostTest, NoiseAndPausesDoNotMislead) {
  const Device device{0.050, 0.0015, 1e-6};
  std::mt19937 random(3);
  std::normal_distribution<double> noise(0, 0.08);
  StepCost cost;
  const auto observe = [&](const StepWork& work) {
    const double pause = random() % 20 == 0 ? 10 : 1;  // another process had the processors
    cost.Observe(work, device(work) * std::exp(noise(random)) * pause);
  };
  for (int i = 0; i < 50; ++i) observe(Decode(8, 100));
  for (int round = 0; round < 20; ++round) {
    for (int64_t done = 0; done < 2000; done += 50) observe(Mixed(8, 50, done));
    for (int i = 0; i < 20; ++i) observe(Decode(8, 100));
    for (const StepWork& work : {Decode(8, 100), Mixed(8, 50, 0), Mixed(8, 50, 1000)}) {
      EXPECT_GT(cost.Seconds(work) / device(work), 0.8) << round;
      EXPECT_LT(cost.Seconds(work) / device(work), 1.6) << round;
    }
  }
}

TEST(StepCostTest, OneKindOfStepDoesNotMakeItForgetAnother) {
  const Device device{0.050, 0.0015, 1e-6};
  StepCost cost;
  for (int64_t done = 0; done < 2000; done += 50) {
    cost.Observe(Mixed(8, 50, done), device(Mixed(8, 50, done)));
  }
  for (int i = 0; i < 100'000; ++i) cost.Observe(Decode(8, 300), device(Decode(8, 300)));
  EXPECT_NEAR(cost.Seconds(Mixed(8, 70, 500)) / device(Mixed(8, 70, 500)), 1, 0.02);
}

TEST(StepCostTest, PicturesTeachNothing) {
  const Device device{0.050, 0.0015, 1e-6};
  StepCost cost;
  for (int i = 0; i < 100; ++i) {
    cost.Observe(Decode(8, 300), device(Decode(8, 300)));
    cost.Observe(Mixed(8, 50, i), device(Mixed(8, 50, i)));
    StepWork begins = Mixed(8, 90, i);
    begins.pictures = 1;
    cost.Observe(begins, device(begins) + 0.5);
  }
  EXPECT_NEAR(cost.Seconds(Mixed(8, 50, 50)) / device(Mixed(8, 50, 50)), 1, 0.02);
  EXPECT_EQ(cost.most_rows(), 58);
}

TEST(StepCostTest, FollowsADeviceThatGetsFasterOrSlower) {
  StepCost cost;
  for (const double speed : {1.0, 0.2, 2.0}) {
    const Device device{0.050 / speed, 0.0015 / speed, 1e-6 / speed};
    for (int i = 0; i < 150; ++i) {
      cost.Observe(Decode(8, 300), device(Decode(8, 300)));
      const StepWork mixed = Mixed(8, 50, 50 * i % 2000);
      cost.Observe(mixed, device(mixed));
    }
    EXPECT_NEAR(cost.Seconds(Decode(8, 300)) / device(Decode(8, 300)), 1, 0.05);
    EXPECT_NEAR(cost.Seconds(Mixed(8, 50, 1000)) / device(Mixed(8, 50, 1000)), 1, 0.05);
  }
}

TEST(StepCostTest, NothingIsEverCheaperThanNothing) {
  std::mt19937 random(11);
  StepCost cost;
  for (int i = 0; i < 2000; ++i) {
    cost.Observe(random() % 2 ? Decode(1 + random() % 16, random() % 1000)
                              : Mixed(random() % 4, 1 + random() % 200, random() % 1000),
                 1e-6 * static_cast<double>(1 + random() % 1000));
    ASSERT_GE(cost.row_seconds(), 0);
    ASSERT_GE(cost.key_seconds(), 0);
    ASSERT_TRUE(std::isfinite(cost.Seconds(Mixed(4, 100, 1000))));
    ASSERT_GT(cost.Seconds(Mixed(4, 100, 1000)), 0);
  }
  cost.Observe({}, 1);
  cost.Observe(Decode(1, 1), 0);
  cost.Observe(Decode(1, 1), NAN);
  EXPECT_TRUE(std::isfinite(cost.Seconds(Mixed(4, 100, 1000))));
}

}  // namespace
}  // namespace llava
