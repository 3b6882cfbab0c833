#include "server/lifecycle/lifecycle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/lifecycle/lifecycle_world.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Kind = Lifecycle::Step::Kind;

Lifecycle::Options Options(const std::string& policy = "latest", uint64_t budget = 0,
                           int workers = 1) {
  Lifecycle::Options options;
  options.policy = *VersionPolicy::Parse(policy);
  options.memory_budget = budget;
  options.workers = workers;
  return options;
}

// Version 1 is served.
class Served : public LifecycleWorld {
 public:
  explicit Served(Lifecycle::Options options) : LifecycleWorld(options) {
    Publish(1);
    Look();
    EndLoad(1);
    EXPECT_THAT(Routed(), ElementsAre(1));
  }
};

const absl::Status kBroken = absl::InvalidArgumentError("model.safetensors has another SHA-256");

TEST(Lifecycle, LoadsTheNewestAndTellsEachState) {
  LifecycleWorld world(Options());
  world.auto_estimate = false;
  world.Look();
  EXPECT_TRUE(world.life().Settled()) << "an empty repository asks for nothing";
  world.Publish(1);
  world.Publish(2);
  world.Look();
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_AVAILABLE);
  EXPECT_FALSE(world.life().Settled());
  world.End(Kind::kEstimate, {"m", 2}, absl::OkStatus());
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_LOADING);
  EXPECT_FALSE(world.jobs().contains({"m", 1})) << "nobody asks for version 1";
  world.life().Warming({"m", 2}, world.now());
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_WARMING);
  EXPECT_THAT(world.Routed(), IsEmpty());
  world.EndLoad(2);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_READY);
  EXPECT_EQ(world.Message(2), "");
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_AVAILABLE);
  EXPECT_TRUE(world.life().Settled());

  std::vector<std::pair<v1::ModelState, v1::ModelState>> way;
  for (const auto& transition : world.life().TakeTransitions()) {
    if (transition.id.version == 2) way.emplace_back(transition.from, transition.to);
  }
  EXPECT_THAT(way, ElementsAre(std::pair(v1::MODEL_STATE_UNSPECIFIED, v1::MODEL_STATE_AVAILABLE),
                               std::pair(v1::MODEL_STATE_AVAILABLE, v1::MODEL_STATE_LOADING),
                               std::pair(v1::MODEL_STATE_LOADING, v1::MODEL_STATE_WARMING),
                               std::pair(v1::MODEL_STATE_WARMING, v1::MODEL_STATE_READY)));
}

TEST(Lifecycle, RoutesTheNewBeforeTheOldGoes) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  EXPECT_EQ(world.jobs().at({"m", 2}).predecessor, 1U);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  world.Pass(seconds(3));
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(2));
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_DRAINING);
  EXPECT_THAT(world.Message(1), HasSubstr("version 2 took its place"));
  EXPECT_EQ(world.freed, 0) << "answers are still under way";
  world.EndAnswers(1);
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_UNLOADED);
  EXPECT_EQ(world.freed, 1);
  const auto swaps = world.life().TakeSwaps();
  ASSERT_EQ(swaps.size(), 1U);
  EXPECT_EQ(swaps[0].mode, SwapMode::kSideBySide);
  EXPECT_EQ(swaps[0].took, seconds(3));
}

TEST(Lifecycle, AFailureLeavesTheOldVersionAndIsTriedAgain) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
  EXPECT_EQ(world.Message(2), kBroken.message());
  EXPECT_THAT(world.Routed(), ElementsAre(1));

  // 1 s, 2 s, 4 s, ... each ± a fifth.
  for (const int delay : {1, 2, 4, 8}) {
    const auto next = world.life().NextTime(world.now()) - world.now();
    EXPECT_GE(next, milliseconds(800 * delay));
    EXPECT_LE(next, milliseconds(1200 * delay));
    world.Pass(next - milliseconds(1));
    EXPECT_FALSE(world.Loading(2)) << "too early";
    world.Pass(milliseconds(1));
    ASSERT_TRUE(world.Loading(2));
    world.EndLoad(2, kBroken);
  }
  for (int i = 0; i < 20; ++i) {
    world.Pass(world.life().NextTime(world.now()) - world.now());
    world.EndLoad(2, kBroken);
  }
  EXPECT_LE(world.life().NextTime(world.now()) - world.now(), seconds(360)) << "no longer wait";
  EXPECT_EQ(world.life().Find({"m", 2})->failures, 25);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

TEST(Lifecycle, ARepairedVersionIsLoadedAtOnce) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  world.Publish(2);  // other files
  world.Look();
  ASSERT_TRUE(world.Loading(2));
  // Repaired while it fails again.
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  ASSERT_TRUE(world.Loading(2)) << "what failed was the state before";
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(2));
  EXPECT_EQ(world.life().Find({"m", 2})->failures, 0);
}

TEST(Lifecycle, WithoutRetriesOnlyAChangeHelps) {
  Lifecycle::Options options = Options();
  options.retry_delay = {};
  Served world(options);
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  EXPECT_EQ(world.life().NextTime(world.now()), Lifecycle::Time::max());
  world.Pass(std::chrono::hours(10));
  EXPECT_FALSE(world.Loading(2));
  world.Publish(2);
  world.Look();
  EXPECT_TRUE(world.Loading(2));
}

TEST(Lifecycle, AnEstimateMayFailToo) {
  Served world(Options());
  world.auto_estimate = false;
  world.Publish(2);
  world.Look();
  world.End(Kind::kEstimate, {"m", 2}, absl::InvalidArgumentError("format_version is 9"));
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(world.Message(2), HasSubstr("format_version"));
  world.Pass(seconds(2));
  EXPECT_TRUE(world.Doing(Kind::kEstimate, 2));
}

TEST(Lifecycle, AfterARestartTheOlderStandsInForTheBroken) {
  LifecycleWorld world(Options());
  world.Publish(1);
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  world.Publish(2);
  world.Look();
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(2));
}

TEST(Lifecycle, ALoadIsNotEndedByANewerVersion) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.Publish(3);
  world.Look();
  EXPECT_THAT(world.stopped(), IsEmpty()) << "a busy trainer would starve everybody";
  EXPECT_FALSE(world.Loading(3)) << "one at a time";
  world.Publish(4);
  world.Look();
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(2));
  EXPECT_TRUE(world.Loading(4)) << "version 3 is of no use any more";
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_DRAINING);
  world.EndLoad(4);
  EXPECT_THAT(world.Routed(), ElementsAre(4));
}

TEST(Lifecycle, LoadsTheMostImportantFirst) {
  LifecycleWorld world(Options("labels"));
  for (const uint64_t version : {1, 2, 3}) world.Publish(version);
  world.repository["m"].marks.labels = {{"canary", 3}, {"stable", 1}, {"old", 2}};
  world.Publish(7, "other");
  world.repository["other"].marks.labels = {{"stable", 7}};
  world.Look();
  for (const auto& [name, version] :
       std::vector<std::pair<std::string, uint64_t>>{{"m", 1}, {"other", 7}, {"m", 3}, {"m", 2}}) {
    ASSERT_TRUE(world.Loading(version, name)) << name << " " << version;
    EXPECT_EQ(world.jobs().size(), 1U);
    world.EndLoad(version, absl::OkStatus(), name);
  }
  EXPECT_THAT(world.Routed(), ElementsAre(1, 2, 3));
}

TEST(Lifecycle, LoadsSeveralAtATimeIfItMay) {
  Lifecycle::Options options = Options("latest:3");
  options.load_slots = 2;
  LifecycleWorld world(options);
  for (const uint64_t version : {1, 2, 3}) world.Publish(version);
  world.Look();
  EXPECT_TRUE(world.Loading(3) && world.Loading(2) && !world.Loading(1));
}

TEST(Lifecycle, LabelsMoveVersions) {
  LifecycleWorld world(Options("auto"));
  for (const uint64_t version : {1, 2}) world.Publish(version);
  world.repository["m"].marks.labels = {{"stable", 1}};
  world.Look();
  world.EndLoad(1);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_AVAILABLE) << "not labelled";
  world.repository["m"].marks.labels["canary"] = 2;
  world.Look();
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(1, 2));
  // Promoted.
  world.repository["m"].marks.labels = {{"stable", 2}};
  world.repository["m"].marks.history["stable"] = {1};
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(2));
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_DRAINING);
  // And back, before the last answer of the old one has ended: nothing is loaded.
  world.repository["m"].marks.labels = {{"stable", 1}};
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  EXPECT_THAT(world.jobs(), IsEmpty());
  world.EndAnswers(2);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_UNLOADED);
}

TEST(Lifecycle, ACanaryThatIsTakenAwayIsNotLoadedOn) {
  LifecycleWorld world(Options("labels"));
  for (const uint64_t version : {1, 2}) world.Publish(version);
  world.repository["m"].marks.labels = {{"stable", 1}};
  world.Look();
  world.EndLoad(1);
  world.repository["m"].marks.labels["canary"] = 2;
  world.Look();
  ASSERT_TRUE(world.Loading(2));
  world.repository["m"].marks.labels.erase("canary");
  world.Look();
  EXPECT_TRUE(world.stopped().contains({"m", 2}));
  world.EndLoad(2, absl::CancelledError("stopped"));
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_UNLOADED);
  EXPECT_EQ(world.life().Find({"m", 2})->failures, 0);
}

TEST(Lifecycle, ALoadThatWasAskedToEndMayBeReadyAllTheSame) {
  LifecycleWorld world(Options("labels"));
  for (const uint64_t version : {1, 2}) world.Publish(version);
  world.repository["m"].marks.labels = {{"stable", 1}};
  world.Look();
  world.EndLoad(1);
  world.repository["m"].marks.labels["canary"] = 2;
  world.Look();
  world.repository["m"].marks.labels.erase("canary");
  world.Look();
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_DRAINING);
  world.EndAnswers(2);
  EXPECT_EQ(world.freed, 1);
}

TEST(Lifecycle, WhatIsDeletedWhileItServesServesOn) {
  Served world(Options());
  world.Delete(1);
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  EXPECT_THAT(world.Message(1), HasSubstr("folder is gone"));
  world.repository.clear();  // the whole root, too
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  world.Publish(2);
  world.Look();
  world.EndLoad(2);
  EXPECT_THAT(world.Routed(), ElementsAre(2));
}

TEST(Lifecycle, DeletingTheNewestGoesBack) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.EndLoad(2);
  world.EndAnswers(1);
  world.Delete(2);
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(2)) << "until version 1 can answer";
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

TEST(Lifecycle, DeletedWhileLoading) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.Delete(2);
  world.Look();
  EXPECT_TRUE(world.stopped().contains({"m", 2})) << "version 1 is what is wanted now";
  world.EndLoad(2, absl::NotFoundError("2: no such folder"));
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  world.Pass(std::chrono::hours(1));
  EXPECT_FALSE(world.Loading(2));
  // Also when nothing else is there.
  LifecycleWorld alone(Options());
  alone.Publish(1);
  alone.Look();
  alone.Delete(1);
  alone.Look();
  alone.EndLoad(1, absl::NotFoundError("1: no such folder"));
  EXPECT_EQ(alone.State(1), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(alone.Message(1), HasSubstr("no such folder"));
  EXPECT_TRUE(alone.life().Settled());
}

TEST(Lifecycle, WhatIsGoneIsForgottenInTheEnd) {
  Served world(Options());
  for (uint64_t version = 2; version < 40; ++version) {
    world.Publish(version);
    world.Look();
    world.EndLoad(version);
    world.EndAnswers(version - 1);
    world.Delete(version - 1);
    world.Look();
  }
  EXPECT_LE(world.life().versions().size(), 10U);
  EXPECT_EQ(world.freed, 38);
}

TEST(Lifecycle, WishesHoldUntilThePolicyMovesOn) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.EndLoad(2);
  world.EndAnswers(1);
  world.Load(1);
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1, 2));
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(1, 2)) << "another look changes nothing";
  world.Unload(2);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  world.EndAnswers(2);
  world.Pass(std::chrono::hours(1));
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_UNLOADED) << "not loaded by itself";
  EXPECT_THAT(world.Message(2), HasSubstr("by request"));
  world.Publish(3);
  world.Look();
  world.EndLoad(3);
  EXPECT_THAT(world.Routed(), ElementsAre(3)) << "the policy has moved past the wishes";
}

TEST(Lifecycle, AWishIsNotOlderThanWhatWasSeenBeforeIt) {
  LifecycleWorld world(Options());
  for (const uint64_t version : {1, 2}) world.Publish(version);
  world.life().SetRepository(world.repository, world.now());
  world.Load(1);  // before anything has been decided
  world.EndLoad(2);
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1, 2));
}

TEST(Lifecycle, UnloadTakesTheLastVersionToo) {
  Served world(Options());
  world.Unload(1);
  EXPECT_THAT(world.Routed(), IsEmpty());
  world.EndAnswers(1);
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_UNLOADED);
  world.Load(1);
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

TEST(Lifecycle, UnloadEndsALoad) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.Unload(2);
  EXPECT_TRUE(world.stopped().contains({"m", 2}));
  world.EndLoad(2, absl::CancelledError("stopped"));
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_UNLOADED);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

TEST(Lifecycle, LoadTriesAFailedVersionAtOnce) {
  Served world(Options());
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  world.Load(2);
  EXPECT_TRUE(world.Loading(2));
}

TEST(Lifecycle, ABrokenVersionIsLoadedAnew) {
  Served world(Options());
  world.Break(1);
  EXPECT_THAT(world.Routed(), IsEmpty());
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_DRAINING);
  world.EndAnswers(1);
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_FAILED);
  EXPECT_EQ(world.Message(1), "device lost");
  world.Pass(seconds(2));
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

TEST(Lifecycle, InPlaceChecksDrainsAndLoads) {
  Served world(Options("latest", 150));
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

TEST(Lifecycle, InPlaceFindsABadFileBeforeAnybodyMakesWay) {
  Served world(Options("latest", 150));
  world.auto_verify = false;
  world.Publish(2);
  world.Look();
  world.End(Kind::kVerify, {"m", 2}, kBroken);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
  world.Pass(seconds(2));
  EXPECT_TRUE(world.Doing(Kind::kVerify, 2)) << "trying again costs nobody anything";
}

TEST(Lifecycle, InPlaceBringsTheOldOneBack) {
  for (const char* policy : {"latest", "2"}) {
    SCOPED_TRACE(policy);
    LifecycleWorld world(Options(policy, 150));
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

TEST(Lifecycle, InPlaceTakesTheOldOneBackIfTheNewOneIsDeletedMeanwhile) {
  Served world(Options("latest", 150));
  world.Publish(2);
  world.Look();
  EXPECT_THAT(world.Routed(), IsEmpty());
  world.Delete(2);
  world.Look();
  EXPECT_THAT(world.Routed(), ElementsAre(1)) << "its answers had not ended yet";
  EXPECT_THAT(world.jobs(), IsEmpty());
}

TEST(Lifecycle, WhatIsWantedMakesNoWay) {
  LifecycleWorld world(Options("labels", 150));
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

TEST(Lifecycle, TooLargeAtAll) {
  LifecycleWorld world(Options("latest", 50));
  world.Publish(1);
  world.Look();
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_FAILED);
  EXPECT_EQ(world.life().Find({"m", 1})->error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(world.life().Settled());
}

TEST(Lifecycle, WaitsForWhatIsLeaving) {
  Served world(Options("latest", 250));
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

TEST(Lifecycle, RollsWorkerByWorker) {
  Served world(Options("latest", 399, 3));
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

TEST(Lifecycle, RollingGivesTheWorkersBack) {
  const absl::Status full = absl::ResourceExhaustedError("device 1 is full");
  {  // The old version cannot give one up.
    Served world(Options("latest", 399, 3));
    world.Publish(2);
    world.Look();
    world.End(Kind::kSetWorkers, {"m", 1}, full);
    EXPECT_EQ(world.State(2), v1::MODEL_STATE_FAILED);
    EXPECT_THAT(world.Message(2), HasSubstr("device 1 is full"));
    EXPECT_TRUE(world.life().Settled());
    EXPECT_EQ(world.WorkersOf(1), 3);
  }
  {  // The new one cannot be loaded.
    Served world(Options("latest", 399, 3));
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
    Served world(Options("latest", 399, 3));
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
    Served world(Options("latest", 250, 2));
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
    Served world(Options("latest", 399, 3));
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

TEST(Lifecycle, NothingBeginsWhileTheProcessDrains) {
  Served world(Options());
  world.life().Drain();
  world.Publish(2);
  world.Look();
  EXPECT_THAT(world.jobs(), IsEmpty());
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

}  // namespace
}  // namespace llava
