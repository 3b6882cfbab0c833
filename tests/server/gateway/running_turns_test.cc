#include "server/gateway/running_turns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

TEST(RunningTurnsTest, OneAtATimeAndWaitersRunAtTheEnd) {
  RunningTurns running;
  int broken = 0;
  int ended = 0;
  ASSERT_TRUE(running.Add("s", "t", [&](TurnBreak) { ++broken; }).ok());
  EXPECT_EQ(running.Add("s", "u", {}).code(), absl::StatusCode::kAborted);
  EXPECT_FALSE(running.Break("s", "other", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_FALSE(running.Break("r", "", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_TRUE(running.Break("s", "", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_TRUE(running.Break("s", "t", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_EQ(broken, 2);
  EXPECT_EQ(ended, 0);
  running.Remove("s");
  running.Remove("s");
  EXPECT_EQ(ended, 2);
  EXPECT_TRUE(running.Add("s", "u", {}).ok());
}

TEST(RunningTurnsTest, ADeletionKeepsTurnsAwayAndCannotBeBroken) {
  RunningTurns running;
  int broken = 0;
  ASSERT_TRUE(running.Add("s", "", [&](TurnBreak) { ++broken; }).ok());
  EXPECT_EQ(running.Add("s", "t", {}).code(), absl::StatusCode::kAborted);
  EXPECT_FALSE(running.Break("s", "", TurnBreak::kCancelTurn, [] {}));
  running.BreakAll(TurnBreak::kShutdown);
  EXPECT_EQ(broken, 0);
}

}  // namespace
}  // namespace llava
