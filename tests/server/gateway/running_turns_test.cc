#include "server/gateway/running_turns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

class FakeTurn : public RunningTurn {
 public:
  void Break(TurnBreak) override { ++broken; }
  absl::Status Attach(TurnReader, const ResumePoint&) override { return absl::OkStatus(); }
  const RequestKey& request_key() const override { return key; }
  void CheckReaders(std::chrono::steady_clock::time_point) override { ++checked; }

  int broken = 0, checked = 0;
  RequestKey key;
};

TEST(RunningTurnsTest, OneAtATimeAndWaitersRunAtTheEnd) {
  RunningTurns running;
  int ended = 0;
  const auto turn = std::make_shared<FakeTurn>();
  ASSERT_TRUE(running.Add("s", "t", turn).ok());
  EXPECT_EQ(running.Add("s", "u", turn).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(running.Find("s", "t"), turn);
  EXPECT_EQ(running.Find("s", ""), turn);
  EXPECT_EQ(running.Find("s", "u"), nullptr);
  EXPECT_EQ(running.Find("r", ""), nullptr);
  EXPECT_TRUE(running.Taken("s"));
  running.CheckReaders();
  EXPECT_EQ(turn->checked, 1);
  EXPECT_FALSE(running.Break("s", "other", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_FALSE(running.Break("r", "", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_TRUE(running.Break("s", "", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_TRUE(running.Break("s", "t", TurnBreak::kCancelTurn, [&] { ++ended; }));
  EXPECT_EQ(turn->broken, 2);
  EXPECT_EQ(ended, 0);
  running.Remove("s");
  running.Remove("s");
  EXPECT_EQ(ended, 2);
  EXPECT_FALSE(running.Taken("s"));
  EXPECT_TRUE(running.Add("s", "u", turn).ok());
}

TEST(RunningTurnsTest, ADeletionKeepsTurnsAwayAndCannotBeBroken) {
  RunningTurns running;
  ASSERT_TRUE(running.Add("s", "", nullptr).ok());
  EXPECT_EQ(running.Add("s", "t", std::make_shared<FakeTurn>()).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(running.Find("s", ""), nullptr);
  EXPECT_TRUE(running.Taken("s"));
  EXPECT_FALSE(running.Break("s", "", TurnBreak::kCancelTurn, [] {}));
  running.BreakAll(TurnBreak::kShutdown);
  running.CheckReaders();
}

}  // namespace
}  // namespace llava
