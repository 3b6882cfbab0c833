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

TEST(Lifecycle, LoadsTheNewestAndTellsEachState) {
  LifecycleWorld world(LifecycleWith());
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
  Served world(LifecycleWith());
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

TEST(Lifecycle, VersionsThatShareTheirMemoryCountOnce) {
  LifecycleWorld world(LifecycleWith("latest", 250));
  for (const uint64_t version : {1, 2}) {
    world.sizes[version] = 200;
    world.memory_groups[version] = "tower a";
  }
  world.Publish(1);
  world.Look();
  world.EndLoad(1);
  world.Publish(2);
  world.Look();
  ASSERT_TRUE(world.Loading(2)) << "it takes nothing: " << world.Message(2);
  EXPECT_THAT(world.Routed(), ElementsAre(1)) << "nobody had to make way";
  world.EndLoad(2);
  EXPECT_EQ(world.life().EstimatedBytes(), 200U);
  world.EndAnswers(1);
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_UNLOADED);
  EXPECT_EQ(world.life().EstimatedBytes(), 200U) << "version 2 holds what they shared";
  // Another one does not fit beside it.
  world.Publish(3);
  world.Look();
  EXPECT_FALSE(world.Loading(3));
  world.EndAnswers(2);
  EXPECT_TRUE(world.Loading(3)) << world.Message(3);
}

TEST(Lifecycle, AForcedModeIsTakenByVersionsThatShareTheirMemoryToo) {
  for (const SwapMode mode : {SwapMode::kInPlace, SwapMode::kSideBySide}) {
    Lifecycle::Options options = LifecycleWith("latest", 150);
    options.swap_mode = mode;
    LifecycleWorld world(options);
    for (const uint64_t version : {1, 2}) world.memory_groups[version] = "tower a";
    world.Publish(1);
    world.Look();
    world.EndLoad(1);
    world.Publish(2);
    world.Look();
    EXPECT_EQ(world.Loading(2), mode == SwapMode::kSideBySide);
    if (mode == SwapMode::kInPlace) world.EndAnswers(1);
    world.EndLoad(2);
    EXPECT_THAT(world.Routed(), ElementsAre(2));
  }
}

TEST(Lifecycle, AVersionThatChangedWhileItWasLoadedIsSizedAnew) {
  Served world(LifecycleWith("latest", 250));
  world.Publish(1);  // other files, while it serves
  world.Look();
  EXPECT_EQ(world.life().EstimatedBytes(), 100U) << "what is loaded is what it was";
  world.Unload(1);
  world.EndAnswers(1);
  world.sizes[1] = 200;
  world.Load(1);
  world.EndLoad(1);
  EXPECT_EQ(world.life().EstimatedBytes(), 200U);
}

TEST(Lifecycle, AFailureLeavesTheOldVersionAndIsTriedAgain) {
  Served world(LifecycleWith());
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

TEST(Lifecycle, AFailureIsOverWhenItsVersionIsNotWantedAnyMore) {
  Served world(LifecycleWith());
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  world.Publish(3);
  world.Look();
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_AVAILABLE);
  EXPECT_THAT(world.Message(2), AllOf(HasSubstr("not wanted"), HasSubstr(kBroken.message())));
  world.EndLoad(3);
  world.Pass(std::chrono::hours(1));
  EXPECT_THAT(world.Routed(), ElementsAre(3));
  EXPECT_FALSE(world.Loading(2));
  // Its folder may also be deleted.
  world.Publish(4);
  world.Look();
  world.EndLoad(4, kBroken);
  EXPECT_EQ(world.State(4), v1::MODEL_STATE_FAILED);
  world.Delete(4);
  world.Look();
  EXPECT_EQ(world.State(4), v1::MODEL_STATE_UNLOADED);
  EXPECT_THAT(world.Message(4), AllOf(HasSubstr("deleted"), HasSubstr(kBroken.message())));
  EXPECT_THAT(world.Routed(), ElementsAre(3));
}

TEST(Lifecycle, ARepairedVersionIsLoadedAtOnce) {
  Served world(LifecycleWith());
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
  Lifecycle::Options options = LifecycleWith();
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
  Served world(LifecycleWith());
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
  LifecycleWorld world(LifecycleWith());
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
  Served world(LifecycleWith());
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
  LifecycleWorld world(LifecycleWith("labels"));
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
  Lifecycle::Options options = LifecycleWith("latest:3");
  options.load_slots = 2;
  LifecycleWorld world(options);
  for (const uint64_t version : {1, 2, 3}) world.Publish(version);
  world.Look();
  EXPECT_TRUE(world.Loading(3) && world.Loading(2) && !world.Loading(1));
}

TEST(Lifecycle, LabelsMoveVersions) {
  LifecycleWorld world(LifecycleWith("auto"));
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
  LifecycleWorld world(LifecycleWith("labels"));
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
  LifecycleWorld world(LifecycleWith("labels"));
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
  Served world(LifecycleWith());
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
  Served world(LifecycleWith());
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
  Served world(LifecycleWith());
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
  LifecycleWorld alone(LifecycleWith());
  alone.Publish(1);
  alone.Look();
  alone.Delete(1);
  alone.Look();
  alone.EndLoad(1, absl::NotFoundError("1: no such folder"));
  EXPECT_EQ(alone.State(1), v1::MODEL_STATE_UNLOADED) << "a failure that nobody can mend";
  EXPECT_THAT(alone.Message(1), HasSubstr("no such folder"));
  EXPECT_TRUE(alone.life().Settled());
}

TEST(Lifecycle, WhatIsGoneIsForgottenInTheEnd) {
  Served world(LifecycleWith());
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
  Served world(LifecycleWith());
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
  LifecycleWorld world(LifecycleWith());
  for (const uint64_t version : {1, 2}) world.Publish(version);
  world.life().SetRepository(world.repository, world.now());
  world.Load(1);  // before anything has been decided
  world.EndLoad(2);
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1, 2));
}

TEST(Lifecycle, UnloadTakesTheLastVersionToo) {
  Served world(LifecycleWith());
  world.Unload(1);
  EXPECT_THAT(world.Routed(), IsEmpty());
  world.EndAnswers(1);
  EXPECT_EQ(world.State(1), v1::MODEL_STATE_UNLOADED);
  world.Load(1);
  world.EndLoad(1);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

TEST(Lifecycle, UnloadEndsALoad) {
  Served world(LifecycleWith());
  world.Publish(2);
  world.Look();
  world.Unload(2);
  EXPECT_TRUE(world.stopped().contains({"m", 2}));
  world.EndLoad(2, absl::CancelledError("stopped"));
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_UNLOADED);
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

TEST(Lifecycle, LoadTriesAFailedVersionAtOnce) {
  Served world(LifecycleWith());
  world.Publish(2);
  world.Look();
  world.EndLoad(2, kBroken);
  world.Load(2);
  EXPECT_TRUE(world.Loading(2));
}

TEST(Lifecycle, ABrokenVersionIsLoadedAnew) {
  Served world(LifecycleWith());
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

TEST(Lifecycle, NothingBeginsWhileTheProcessDrains) {
  Served world(LifecycleWith());
  world.life().Drain();
  world.Publish(2);
  world.Look();
  EXPECT_THAT(world.jobs(), IsEmpty());
  EXPECT_THAT(world.Routed(), ElementsAre(1));
}

}  // namespace
}  // namespace llava
