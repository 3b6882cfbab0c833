#include "server/gateway/key_lanes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/runtime/status.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class KeyLanesTest : public testing::Test {
 protected:
  // Calls are told apart by these.
  const void* Id(const std::string& call) { return &*ids_.insert(call).first; }
  absl::Status Enter(const std::string& key, const std::string& call) {
    return lanes_.Enter(key, Id(call), [this, call](KeyLanes::Place place) {
      begun_.push_back(call);
      places_[call] = std::move(place);
    });
  }

  KeyLanes lanes_{2, 1'000'000};
  std::set<std::string> ids_;
  std::vector<std::string> begun_;
  std::map<std::string, KeyLanes::Place> places_;
};

TEST_F(KeyLanesTest, WhoComesWhenItsKeyHasItsFillWaitsItsTurn) {
  for (const char* call : {"a1", "a2", "a3", "a4"}) EXPECT_TRUE(Enter("a", call).ok());
  EXPECT_TRUE(Enter("b", "b1").ok());
  EXPECT_THAT(begun_, ElementsAre("a1", "a2", "b1")) << "other keys do not wait";
  places_.erase("a2");
  EXPECT_THAT(begun_, ElementsAre("a1", "a2", "b1", "a3"));
  places_.erase("a1");
  places_.erase("a3");
  EXPECT_TRUE(Enter("a", "a5").ok());
  EXPECT_THAT(begun_, ElementsAre("a1", "a2", "b1", "a3", "a4", "a5"));
}

// Not each within the one before.
TEST_F(KeyLanesTest, ManyThatEndAtOnceTakeNoStack) {
  ASSERT_TRUE(Enter("a", "first").ok());
  ASSERT_TRUE(Enter("a", "second").ok());
  int done = 0;
  for (int i = 0; i < 1'000'000; ++i) {
    ASSERT_TRUE(lanes_.Enter("a", &done, [&done](const KeyLanes::Place&) { ++done; }).ok());
  }
  EXPECT_EQ(done, 0);
  places_.clear();
  EXPECT_EQ(done, 1'000'000);
}

TEST_F(KeyLanesTest, APlaceMayOutliveTheLanes) {
  KeyLanes::Place place;
  {
    KeyLanes lanes(1, 1);
    ASSERT_TRUE(
        lanes.Enter("a", &place, [&place](KeyLanes::Place mine) { place = std::move(mine); }).ok());
  }
  place.reset();
}

TEST_F(KeyLanesTest, WhoWaitsCanBeTakenBack) {
  for (const char* call : {"a1", "a2", "a3", "a4"}) ASSERT_TRUE(Enter("a", call).ok());
  EXPECT_FALSE(lanes_.TakeBack("a", Id("a1"))) << "it has a place";
  EXPECT_FALSE(lanes_.TakeBack("b", Id("a3"))) << "of another key";
  EXPECT_TRUE(lanes_.TakeBack("a", Id("a3")));
  EXPECT_FALSE(lanes_.TakeBack("a", Id("a3"))) << "it was taken back before";
  // One at a time: whose turn it is then takes a place among them.
  places_.erase("a1");
  EXPECT_THAT(begun_, ElementsAre("a1", "a2", "a4"));
  EXPECT_FALSE(lanes_.TakeBack("a", Id("a4"))) << "it has run";
}

TEST_F(KeyLanesTest, SoManyMayWait) {
  KeyLanes lanes(1, 2);
  std::vector<KeyLanes::Place> places;
  const auto enter = [&](const std::string& key) {
    return lanes.Enter(key, nullptr,
                       [&](KeyLanes::Place place) { places.push_back(std::move(place)); });
  };
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(enter("a").ok()) << "one has a place, two wait";
  const absl::Status refused = enter("a");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("2 calls of this kind of the API key \"a\" wait"));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  EXPECT_TRUE(enter("b").ok()) << "another key";
  KeyLanes::Place first = std::move(places.front());
  places.erase(places.begin());
  first.reset();
  EXPECT_TRUE(enter("a").ok());
  EXPECT_FALSE(enter("a").ok());
  while (!places.empty()) std::exchange(places, {}).clear();  // those that wait come to have one
}

}  // namespace
}  // namespace llava
