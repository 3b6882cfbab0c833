#include "server/gateway/feature_index.h"

#include <gtest/gtest.h>

#include "server/wire/feature_key.h"

namespace llava {
namespace {

v1::FeatureKey Key(const std::string& picture, const std::string& numerics = "cpu-f32") {
  return MakeFeatureKey(HashBytes(picture), {}, numerics);
}

TEST(FeatureIndexTest, RemembersUntilRemoved) {
  FeatureIndex index;
  EXPECT_FALSE(index.Contains(Key("a")));
  index.Add(Key("a"));
  index.Add(Key("a"));
  EXPECT_TRUE(index.Contains(Key("a")));
  EXPECT_FALSE(index.Contains(Key("a", "cuda-bf16"))) << "other arithmetic, other features";
  index.Remove(Key("a"));
  index.Remove(Key("a"));
  EXPECT_FALSE(index.Contains(Key("a")));
}

TEST(FeatureIndexTest, ForgetsTheLeastRecentlyUsed) {
  FeatureIndex index(2);
  index.Add(Key("a"));
  index.Add(Key("b"));
  EXPECT_TRUE(index.Contains(Key("a")));
  index.Add(Key("c"));
  EXPECT_TRUE(index.Contains(Key("a")));
  EXPECT_FALSE(index.Contains(Key("b")));
  EXPECT_TRUE(index.Contains(Key("c")));
}

TEST(FeatureIndexTest, PlacesOfForgottenKeysAreUsedAgain) {
  FeatureIndex index(3);
  for (int turn = 0; turn < 50; ++turn) {
    const std::string now = std::to_string(turn), before = std::to_string(turn - 1);
    index.Add(Key(now));
    EXPECT_TRUE(index.Contains(Key(now)));
    if (turn % 5 == 4) index.Remove(Key(before));
    EXPECT_EQ(index.Contains(Key(before)), turn > 0 && turn % 5 != 4) << turn;
    EXPECT_FALSE(index.Contains(Key(std::to_string(turn - 4))));
  }
}

TEST(FeatureIndexTest, OneBringsAndOthersWait) {
  FeatureIndex index;
  uint64_t first = 0, second = 0, third = 0;
  int woken = 0;
  EXPECT_EQ(index.Claim(
                Key("a"), [] {}, &first),
            FeatureIndex::State::kMissing);
  EXPECT_EQ(index.Claim(
                Key("a"), [&] { ++woken; }, &second),
            FeatureIndex::State::kComing);
  EXPECT_EQ(index.Claim(
                Key("a"), [&] { woken += 10; }, &third),
            FeatureIndex::State::kComing);
  EXPECT_TRUE(index.Abandon(third));
  EXPECT_FALSE(index.Abandon(third));
  EXPECT_EQ(woken, 0);
  index.Add(Key("a"));
  index.Release(Key("a"));
  EXPECT_EQ(woken, 1);
  EXPECT_FALSE(index.Abandon(second)) << "it ran";
  EXPECT_EQ(index.Claim(
                Key("a"), [] {}, &first),
            FeatureIndex::State::kThere);
}

TEST(FeatureIndexTest, AfterAFailureAnotherOneBrings) {
  FeatureIndex index;
  uint64_t ticket = 0;
  ASSERT_EQ(index.Claim(
                Key("a"), [] {}, &ticket),
            FeatureIndex::State::kMissing);
  auto state = FeatureIndex::State::kThere;
  ASSERT_EQ(index.Claim(
                Key("a"),
                [&] {
                  state = index.Claim(
                      Key("a"), [] {}, &ticket);
                },
                &ticket),
            FeatureIndex::State::kComing);
  index.Release(Key("a"));
  EXPECT_EQ(state, FeatureIndex::State::kMissing);
}

}  // namespace
}  // namespace llava
