#include "server/gateway/recovery_lane.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace llava {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class RecoveryLaneTest : public testing::Test {
 protected:
  void SetUp() override { lane_.Open(); }
  void Enter(int turn, bool suspect = false) {
    lane_.Enter(&turns_[turn], suspect, [this, turn] { begun_.push_back(turn); });
  }
  bool Remove(int turn) { return lane_.Remove(&turns_[turn]); }

  RecoveryLane lane_{2};
  char turns_[10] = {};
  std::vector<int> begun_;
};

TEST_F(RecoveryLaneTest, FirstComeFirstServedAFewAtATime) {
  for (int turn = 0; turn < 5; ++turn) Enter(turn);
  EXPECT_THAT(begun_, ElementsAre(0, 1));
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2));
  EXPECT_TRUE(Remove(3));
  EXPECT_FALSE(Remove(3));
  EXPECT_FALSE(Remove(2)) << "it has begun";
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2, 4));
  lane_.Leave();
  lane_.Leave();
  Enter(0);
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2, 4, 0));
}

TEST(ClosedRecoveryLaneTest, NobodyTriesBeforeItOpens) {
  RecoveryLane lane;
  const char turns[2] = {};
  std::vector<int> begun;
  for (const int turn : {0, 1}) {
    lane.Enter(&turns[turn], false, [&begun, turn] { begun.push_back(turn); });
  }
  EXPECT_THAT(begun, IsEmpty());
  EXPECT_TRUE(lane.Remove(&turns[0]));
  lane.Open();
  EXPECT_THAT(begun, ElementsAre(1));
}

TEST_F(RecoveryLaneTest, SuspectsComeLastAndAlone) {
  Enter(0);
  Enter(7, /*suspect=*/true);
  Enter(8, /*suspect=*/true);
  Enter(1);
  Enter(2);
  EXPECT_THAT(begun_, ElementsAre(0, 1));
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2)) << "the others go first";
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2)) << "not beside another";
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2, 7));
  Enter(3);
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2, 7)) << "nor another beside it";
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2, 7, 3));
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0, 1, 2, 7, 3, 8));
}

TEST_F(RecoveryLaneTest, ASuspectMayGiveUpItsPlace) {
  Enter(0);
  Enter(1, /*suspect=*/true);
  EXPECT_TRUE(Remove(1));
  lane_.Leave();
  EXPECT_THAT(begun_, ElementsAre(0));
}

}  // namespace
}  // namespace llava
