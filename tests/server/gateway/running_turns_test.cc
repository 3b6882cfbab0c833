#include "server/gateway/running_turns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

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
  EXPECT_FALSE(running.Break("s", "other", TurnBreak::kCancelTurn, [&](bool) { ++ended; }));
  EXPECT_FALSE(running.Break("r", "", TurnBreak::kCancelTurn, [&](bool) { ++ended; }));
  EXPECT_TRUE(running.Break("s", "", TurnBreak::kCancelTurn, [&](bool) { ++ended; }));
  EXPECT_TRUE(running.Break("s", "t", TurnBreak::kCancelTurn, [&](bool) { ++ended; }));
  EXPECT_EQ(turn->broken, 2);
  EXPECT_EQ(ended, 0);
  running.Remove("s");
  running.Remove("s");
  EXPECT_EQ(ended, 2);
  EXPECT_FALSE(running.Taken("s"));
  EXPECT_TRUE(running.Add("s", "u", turn).ok());
}

TEST(RunningTurnsTest, ThoseInLineFollowEachOtherAndNobodyComesBetween) {
  RunningTurns running;
  const auto first = std::make_shared<FakeTurn>(), second = std::make_shared<FakeTurn>(),
             third = std::make_shared<FakeTurn>();
  std::vector<int> started;
  running.AddInLine("s", "t1", first, [&] { started.push_back(1); });
  running.AddInLine("s", "t2", second, [&] { started.push_back(2); });
  running.AddInLine("s", "t3", third, [&] { started.push_back(3); });
  EXPECT_EQ(started, std::vector<int>{1});
  EXPECT_EQ(running.Find("s", "t1"), first);
  EXPECT_EQ(running.Find("s", "t2"), nullptr);
  ASSERT_TRUE(running.Break("s", "t1", TurnBreak::kCancelTurn, [&](bool) {
    EXPECT_EQ(running.Add("s", "u", first).code(), absl::StatusCode::kAborted);
    started.push_back(0);
  }));
  running.Remove("s");
  EXPECT_EQ(started, (std::vector<int>{1, 0, 2}));
  EXPECT_EQ(running.Find("s", ""), second);
  running.BreakAll(TurnBreak::kShutdown);
  EXPECT_EQ(second->broken, 1);
  EXPECT_EQ(third->broken, 0);
  running.Remove("s");
  EXPECT_EQ(running.Find("s", "t3"), third);
  running.Remove("s");
  EXPECT_EQ(started, (std::vector<int>{1, 0, 2, 3}));
  EXPECT_FALSE(running.Taken("s"));
}

TEST(RunningTurnsTest, ADeletionKeepsTurnsAwayAndCannotBeBroken) {
  RunningTurns running;
  ASSERT_TRUE(running.Add("s", "", nullptr).ok());
  EXPECT_EQ(running.Add("s", "t", std::make_shared<FakeTurn>()).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(running.Find("s", ""), nullptr);
  EXPECT_TRUE(running.Taken("s"));
  EXPECT_FALSE(running.Break("s", "", TurnBreak::kCancelTurn, [](bool) {}));
  running.BreakAll(TurnBreak::kShutdown);
  running.CheckReaders();
}

}  // namespace
}  // namespace llava
