// Lifecycle where memory is short: versions that make way, and come back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/lifecycle/lifecycle_world.h"

namespace llava {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Kind = Lifecycle::Step::Kind;

TEST(LifecycleSwap, InPlaceChecksDrainsAndLoads) {
  Served world(LifecycleWith("latest", 150));
  world.auto_verify = false;
  world.Publish(2);
  world.Look();
  ASSERT_TRUE(world.Doing(Kind::kVerify, 2));
  EXPECT_THAT(world.Routed(), ElementsAre(1)) << "nothing has been touched";
  world.End(Kind::kVerify, {"m", 2}, absl::OkStatus());
  EXPECT_THAT(world.Routed(), IsEmpty());
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_DRAINING);
  EXPECT_FALSE(world.Loading(2)) << "the answers of version 1 go on";
  world.EndAnswers(1);
  ASSERT_TRUE(world.Loading(2));
  EXPECT_EQ(world.jobs().at({"m", 2}).predecessor, 0U);
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(2));
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_UNLOADED);
  const auto swaps = world.life().TakeSwaps();
  ASSERT_EQ(swaps.size(), 1U);
  EXPECT_EQ(swaps[0].mode, SwapMode::kInPlace);
}

TEST(LifecycleSwap, InPlaceFindsABadFileBeforeAnybodyMakesWay) {
  Served world(LifecycleWith("latest", 150));
  world.auto_verify = false;
  world.Publish(2);
  world.Look();
  world.End(Kind::kVerify, {"m", 2}, kBroken);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  world.Pass(seconds(2));
  EXPECT_TRUE(world.Doing(Kind::kVerify, 2)) << "trying again costs nobody anything";
}

TEST(LifecycleSwap, InPlaceBringsTheOldOneBack) {
  for (const char* policy : {"latest", "2"}) {
    SCOPED_TRACE(policy);
    LifecycleWorld world(LifecycleWith(policy, 150));
    world.Publish(1);
    world.Look();
    if (policy != std::string("latest")) world.Load(1);  // which has no stand-ins
    world.EndLoad(1);
    world.Publish(2);
    world.Look();
    world.EndAnswers(1);
    world.EndLoad(2, absl::FailedPreconditionError("self-test off by 3"));
    EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
    EXPECT_THAT(world.Message(2), HasSubstr("self-test off by 3"));
    EXPECT_THAT(world.Message(2), HasSubstr("not tried again"));
    ASSERT_TRUE(world.Loading(1));
    world.EndLoad(1);
    EXPECT_THAT(world.Routed(), ElementsAre(1));
    world.Pass(std::chrono::hours(10));
    EXPECT_THAT(world.Routed(), ElementsAre(1)) << "a broken version must not interrupt it again";
    world.Publish(2);  // repaired
    world.Look();
    world.EndAnswers(1);
    world.EndLoad(2);
    EXPECT_THAT(world.Routed(), ElementsAre(2));
    EXPECT_THAT(world.jobs(), IsEmpty());
  }
}

TEST(LifecycleSwap, InPlaceTakesTheOldOneBackIfTheNewOneIsDeletedMeanwhile) {
  Served world(LifecycleWith("latest", 150));
  world.Publish(2);
  world.Look();
  EXPECT_THAT(world.Routed(), IsEmpty());
  world.Delete(2);
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(1)) << "its answers had not ended yet";
  EXPECT_THAT(world.jobs(), IsEmpty());
}

TEST(LifecycleSwap, AStoppedLoadIsNoFailure) {
  Lifecycle::Options options = LifecycleWith("latest");
  options.swap_mode = SwapMode::kInPlace;
  Served world(options);
  world.auto_verify = false;
  world.Publish(2);
  world.Look();
  world.End(Kind::kVerify, {"m", 2}, absl::UnavailableError("the disk does not answer"));
  world.Pass(seconds(2));
  world.End(Kind::kVerify, {"m", 2}, absl::OkStatus());
  world.EndAnswers(1);
  ASSERT_TRUE(world.Loading(2));
  world.Unload(2);
  world.EndLoad(2, absl::CancelledError("stopped"));
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_UNLOADED);
  ASSERT_TRUE(world.Loading(1));
  world.EndLoad(1);
  // The policy moves away from it and back: no wish is left.
  world.Publish(3);
  world.Look();
  world.Delete(3);
  world.Look();
  world.End(Kind::kVerify, {"m", 3}, absl::CancelledError("stopped"));
  for (int i = 0; i < 10; ++i) world.Pass(seconds(1));
  EXPECT_LT(world.Message(2).size(), 200U) << world.Message(2);
  EXPECT_TRUE(world.Doing(Kind::kVerify, 2)) << world.Describe();
}

TEST(LifecycleSwap, WhatHangsHoldsUpNobodyForEver) {
  const auto minute = std::chrono::minutes(1);
  {  // Others that do not fit are refused, others that do are loaded.
    Served world(LifecycleWith("latest", 350));
    world.auto_free = false;
    world.Publish(2);
    world.Look();
    world.EndLoad(2);
    world.EndAnswers(1);  // it is never freed
    world.sizes[8] = 200;
    world.Publish(8, "large");
    world.Look();
    EXPECT_EQ(world.State(8, "large"), v1::MODEL_STATE_AVAILABLE) << "waits for version 1";
    world.Publish(9, "small");
    world.Look();
    EXPECT_FALSE(world.Loading(9, "small")) << "what is more important waits";
    EXPECT_LE(world.life().NextTime(world.now()), world.now() + minute);
    world.Pass(minute);
    EXPECT_EQ(world.State(8, "large"), v1::MODEL_STATE_FAILED);
    ASSERT_TRUE(world.Loading(9, "small"));
    world.EndLoad(9, absl::OkStatus(), "small");
    EXPECT_EQ(world.life().EstimatedBytes(), 300U) << "what hangs still counts";
    world.Unload(9, "small");
    world.EndAnswers(9, "small");
    world.End(Kind::kRelease, {"small", 9}, absl::OkStatus());
    world.End(Kind::kRelease, {"m", 1}, absl::OkStatus());
    EXPECT_TRUE(world.Loading(8, "large")) << "there is room now: " << world.Describe();
  }
  {  // The version that made way.
    Served world(LifecycleWith("latest", 150));
    world.auto_free = false;
    world.Publish(2);
    world.Look();
    world.EndAnswers(1);
    world.sizes[9] = 10;
    world.Publish(9, "small");
    world.Look();
    EXPECT_FALSE(world.Loading(9, "small")) << "the swap has the only slot";
    world.Pass(minute);
    EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
    EXPECT_THAT(world.Message(2), HasSubstr("version 1 has made way and hangs"));
    EXPECT_TRUE(world.Loading(9, "small"));
    world.EndLoad(9, absl::OkStatus(), "small");
    world.End(Kind::kRelease, {"m", 1}, absl::OkStatus());
    EXPECT_TRUE(world.Loading(2)) << world.Describe();
  }
  {  // The last worker of a swap worker by worker.
    Served world(LifecycleWith("latest", 250, 2));
    world.auto_free = false;
    world.Publish(2);
    world.Look();
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    world.EndLoad(2);
    world.EndAnswers(1);
    world.Pass(minute);
    EXPECT_THAT(world.Routed(), ElementsAre(2));
    EXPECT_THAT(world.Message(2), HasSubstr("version 1 hangs"));
    world.sizes[9] = 10;
    world.Publish(9, "small");
    world.Look();
    EXPECT_TRUE(world.Loading(9, "small"));
  }
}

TEST(LifecycleSwap, WhatIsWantedMakesNoWay) {
  LifecycleWorld world(LifecycleWith("labels", 150));
  for (const uint64_t version : {1, 2}) world.Publish(version);
  world.repository["m"].marks.labels = {{"canary", 2}, {"stable", 1}};
  world.Look();
  world.EndLoad(1);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(world.Message(2), HasSubstr("--memory-budget is 150 bytes"));
  EXPECT_EQ(world.life().Find({"m", 2})->error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  // As soon as there is room.
  world.Unload(1);
  world.EndAnswers(1);
  EXPECT_TRUE(world.Loading(2));
}

TEST(LifecycleSwap, TooLargeAtAll) {
  LifecycleWorld world(LifecycleWith("latest", 50));
  world.Publish(1);
  world.Look();
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_FAILED);
  EXPECT_EQ(world.life().Find({"m", 1})->error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(world.life().Settled());
}

TEST(LifecycleSwap, WaitsForWhatIsLeaving) {
  Served world(LifecycleWith("latest", 250));
  world.Publish(2);
  world.Look();
  world.EndLoad(2);  // beside version 1, which drains now
  world.Publish(3);
  world.Look();
  EXPECT_EQ(world.State(3), v1::MODEL_STATE_AVAILABLE);
  EXPECT_THAT(world.Message(3), HasSubstr("waits for memory"));
  EXPECT_THAT(world.Routed(), ElementsAre(2));
  world.EndAnswers(1);
  EXPECT_TRUE(world.Loading(3)) << "side by side again";
}

TEST(LifecycleSwap, RollsWorkerByWorker) {
  Served world(LifecycleWith("latest", 399, 3));
  EXPECT_EQ(world.WorkersOf(1), 3);
  world.Publish(2);
  world.Look();
  ASSERT_TRUE(world.Doing(Kind::kSetWorkers, 1));
  world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
  EXPECT_EQ(world.WorkersOf(1), 2);
  ASSERT_TRUE(world.Loading(2));
  EXPECT_EQ(world.jobs().at({"m", 2}).workers, 1);
  EXPECT_EQ(world.jobs().at({"m", 2}).predecessor, 1U);
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(1, 2));
  world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
  world.End(Kind::kSetWorkers, {"m", 2}, absl::OkStatus());
  EXPECT_EQ(world.WorkersOf(1), 1);
  EXPECT_EQ(world.WorkersOf(2), 2);
  EXPECT_THAT(world.Routed(), ElementsAre(2)) << "the last worker leaves when its answers end";
  world.EndAnswers(1);
  world.End(Kind::kSetWorkers, {"m", 2}, absl::OkStatus());
  EXPECT_EQ(world.WorkersOf(2), 3);
  EXPECT_TRUE(world.life().Settled());
  const auto swaps = world.life().TakeSwaps();
  ASSERT_EQ(swaps.size(), 1U);
  EXPECT_EQ(swaps[0].mode, SwapMode::kRolling);
}

TEST(LifecycleSwap, RollingGivesTheWorkersBack) {
  const absl::Status full = absl::ResourceExhaustedError("device 1 is full");
  {  // The old version cannot give one up.
    Served world(LifecycleWith("latest", 399, 3));
    world.Publish(2);
    world.Look();
    world.End(Kind::kSetWorkers, {"m", 1}, full);
    EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
    EXPECT_THAT(world.Message(2), HasSubstr("device 1 is full"));
    EXPECT_TRUE(world.life().Settled());
    EXPECT_EQ(world.WorkersOf(1), 3);
  }
  {  // The new one cannot be loaded.
    Served world(LifecycleWith("latest", 399, 3));
    world.Publish(2);
    world.Look();
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    world.EndLoad(2, kBroken);
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    EXPECT_EQ(world.WorkersOf(1), 3);
    world.Pass(std::chrono::hours(1));
    EXPECT_THAT(world.jobs(), IsEmpty());
  }
  {  // The new one cannot grow.
    Served world(LifecycleWith("latest", 399, 3));
    world.Publish(2);
    world.Look();
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    world.EndLoad(2);
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    world.End(Kind::kSetWorkers, {"m", 2}, full);
    EXPECT_THAT(world.Routed(), ElementsAre(1));
    world.EndAnswers(2);
    EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
    EXPECT_THAT(world.Message(2), HasSubstr("device 1 is full"));
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    EXPECT_EQ(world.WorkersOf(1), 3);
  }
  {  // At the last worker there is no way back: it serves on those it has.
    Served world(LifecycleWith("latest", 250, 2));
    world.Publish(2);
    world.Look();
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    world.EndLoad(2);
    world.EndAnswers(1);
    world.End(Kind::kSetWorkers, {"m", 2}, full);
    EXPECT_THAT(world.Routed(), ElementsAre(2));
    EXPECT_THAT(world.Message(2), HasSubstr("from 1 workers to 2"));
  }
  {  // The new one breaks on the way.
    Served world(LifecycleWith("latest", 399, 3));
    world.Publish(2);
    world.Look();
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    world.EndLoad(2);
    world.Break(2);
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    EXPECT_THAT(world.Routed(), ElementsAre(1));
    world.EndAnswers(2);
    world.End(Kind::kSetWorkers, {"m", 1}, absl::OkStatus());
    EXPECT_EQ(world.WorkersOf(1), 3);
  }
}

}  // namespace
}  // namespace llava
