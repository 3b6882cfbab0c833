#include "server/gateway/key_lanes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace llava {
namespace {

using testing::ElementsAre;

class KeyLanesTest : public testing::Test {
 protected:
  void Enter(const std::string& key, const std::string& call) {
    lanes_.Enter(key, [this, call](KeyLanes::Place place) {
      begun_.push_back(call);
      places_[call] = std::move(place);
    });
  }

  KeyLanes lanes_{2};
  std::vector<std::string> begun_;
  std::map<std::string, KeyLanes::Place> places_;
};

TEST_F(KeyLanesTest, WhoComesWhenItsKeyHasItsFillWaitsItsTurn) {
  for (const char* call : {"a1", "a2", "a3", "a4"}) Enter("a", call);
  Enter("b", "b1");
  EXPECT_THAT(begun_, ElementsAre("a1", "a2", "b1")) << "other keys do not wait";
  places_.erase("a2");
  EXPECT_THAT(begun_, ElementsAre("a1", "a2", "b1", "a3"));
  places_.erase("a1");
  places_.erase("a3");
  Enter("a", "a5");
  EXPECT_THAT(begun_, ElementsAre("a1", "a2", "b1", "a3", "a4", "a5"));
}

// Not each within the one before.
TEST_F(KeyLanesTest, ManyThatEndAtOnceTakeNoStack) {
  Enter("a", "first");
  Enter("a", "second");
  int done = 0;
  for (int i = 0; i < 1'000'000; ++i) {
    lanes_.Enter("a", [&done](const KeyLanes::Place&) { ++done; });
  }
  EXPECT_EQ(done, 0);
  places_.clear();
  EXPECT_EQ(done, 1'000'000);
}

TEST_F(KeyLanesTest, APlaceMayOutliveTheLanes) {
  KeyLanes::Place place;
  {
    KeyLanes lanes(1);
    lanes.Enter("a", [&place](KeyLanes::Place mine) { place = std::move(mine); });
  }
  place.reset();
}

}  // namespace
}  // namespace llava
