// What the services say of a canary: values that are no numbers, and how far it is off.

#include <gmock/gmock.h>

#include <set>
#include <string>
#include <thread>

#include "tests/server/gateway/rollout_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;

using RolloutHealthTest = RolloutTest;

TEST_F(RolloutHealthTest, NanAndDriftAreEnough) {
  options_.rollout.mode = "auto";
  Start({1, 2});
  Label("stable", 1);
  Label("canary", 2);
  AwaitLook(2);
  llm_.models().SetHealth(2, 0.01, 1);
  ASSERT_TRUE(Eventually([this] { return Rollout().applied(); }));
  EXPECT_EQ(Rollout().verdict(), v1::ROLLOUT_VERDICT_WORSE);
  EXPECT_EQ(Rollout().canary_evidence().nan_outputs(), 1u);
  EXPECT_THAT(Rollout().reason(), HasSubstr("no numbers"));

  // A rejected version is no canary until somebody takes the verdict back.
  Label("canary", 2);
  llm_.models().SetHealth(2, 0.9, 0);
  std::this_thread::sleep_for(10 * options_.rollout.period);
  EXPECT_EQ(VersionOf(Question(NewSession(), "a")), 1u);
  EXPECT_THAT(Rollout().reason(), HasSubstr("no numbers"));
  Label("rejected-2", 0);
  ASSERT_TRUE(
      Eventually([this] { return Rollout().reason().find("self-test") != std::string::npos; }));
  ASSERT_TRUE(Eventually([this] { return Rollout().applied(); }));
  EXPECT_DOUBLE_EQ(Rollout().canary_evidence().self_test_drift(), 0.9);
}

TEST_F(RolloutHealthTest, ObservingChangesNothing) {
  Start({1, 2});
  Label("stable", 1);
  Label("canary", 2);
  AwaitLook(2);
  llm_.models().SetHealth(2, 0.01, 1);
  ASSERT_TRUE(Eventually([this] { return Rollout().verdict() == v1::ROLLOUT_VERDICT_WORSE; }));
  std::this_thread::sleep_for(10 * options_.rollout.period);
  EXPECT_FALSE(Rollout().applied());
  EXPECT_EQ(Labels(2), std::set<std::string>({"canary"}));
  EXPECT_EQ(Metric("llava_gateway_rollout_active{model=\"emoji\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_rollout_nan_outputs{model=\"emoji\",role=\"canary\"}"), 1);
}

// Services count since they loaded a version, which may be long ago.
TEST_F(RolloutHealthTest, WhatACanaryDidBeforeItWasOneDoesNotCount) {
  options_.rollout.mode = "auto";
  Start({1, 2});
  Label("stable", 1);
  llm_.models().SetHealth(1, 0.01, 30);
  llm_.models().SetHealth(2, 0.01, 1);
  Label("canary", 2);
  AwaitLook(2);
  std::this_thread::sleep_for(10 * options_.rollout.period);
  EXPECT_EQ(Rollout().verdict(), v1::ROLLOUT_VERDICT_UNDECIDED) << Rollout().reason();
  EXPECT_EQ(Rollout().canary_evidence().nan_outputs(), 0u);
  EXPECT_EQ(Rollout().stable_evidence().nan_outputs(), 0u);
  llm_.models().SetHealth(2, 0.01, 2);
  ASSERT_TRUE(Eventually([this] { return Rollout().applied(); }));
  EXPECT_EQ(Rollout().verdict(), v1::ROLLOUT_VERDICT_WORSE);
  EXPECT_EQ(Rollout().canary_evidence().nan_outputs(), 1u);
  EXPECT_THAT(Rollout().reason(), HasSubstr("no numbers (stable: 0)"));
}

TEST_F(RolloutHealthTest, AProcessThatBeganAnewCountsOn) {
  Start({1, 2});
  Label("stable", 1);
  llm_.models().SetHealth(2, 0.01, 5);
  Label("canary", 2);
  AwaitLook(2);
  const auto nan_outputs = [this] { return Rollout().canary_evidence().nan_outputs(); };
  llm_.models().SetHealth(2, 0.01, 6);
  EXPECT_TRUE(Eventually([&] { return nan_outputs() == 1; })) << nan_outputs();
  llm_.models().SetHealth(2, 0.01, 2);
  EXPECT_TRUE(Eventually([&] { return nan_outputs() == 3; })) << nan_outputs();
  llm_.models().SetHealth(2, 0.01, 8);
  EXPECT_TRUE(Eventually([&] { return nan_outputs() == 9; })) << nan_outputs();
}

}  // namespace
}  // namespace llava
