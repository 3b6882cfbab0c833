#include "server/llm/feature_store.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

using Clock = FeatureStore::Clock;

StoredFeatures Features(size_t bytes) {
  return {FeatureType::kBFloat16, 1, static_cast<int64_t>(bytes / 2), std::string(bytes, 'x')};
}

class FeatureStoreTest : public ::testing::Test {
 protected:
  Metrics metrics_{"llm"};
  FeatureStore store_{100, std::chrono::seconds(30), metrics_};
  const Clock::time_point start_ = Clock::now();
  Clock::time_point At(int seconds) const { return start_ + std::chrono::seconds(seconds); }
};

TEST_F(FeatureStoreTest, FreshFeaturesStayHalfAMinute) {
  ASSERT_TRUE(store_.Put("a", Features(60), At(0)).ok());
  EXPECT_EQ(store_.Put("b", Features(60), At(29)).code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(store_.Get("a"), nullptr);
  EXPECT_TRUE(store_.Put("b", Features(60), At(31)).ok());
  EXPECT_EQ(store_.Get("a"), nullptr);
  EXPECT_EQ(store_.size_bytes(), 60u);
  EXPECT_EQ(store_.entries(), 1u);
  EXPECT_NE(metrics_.Render().find("llava_llm_feature_store_evictions_total 1"), std::string::npos);
}

TEST_F(FeatureStoreTest, PuttingAgainPinsAgain) {
  ASSERT_TRUE(store_.Put("a", Features(60), At(0)).ok());
  EXPECT_TRUE(store_.Renew("a", At(25)));
  EXPECT_FALSE(store_.Renew("b", At(25)));
  EXPECT_FALSE(store_.Put("b", Features(60), At(40)).ok());
  EXPECT_TRUE(store_.Put("a", Features(60), At(40)).ok()) << "the second Put renews";
  EXPECT_FALSE(store_.Put("b", Features(60), At(60)).ok());
  EXPECT_TRUE(store_.Put("b", Features(60), At(71)).ok());
}

TEST_F(FeatureStoreTest, WhatAnAnswerHoldsStays) {
  ASSERT_TRUE(store_.Put("a", Features(60), At(0)).ok());
  auto held = store_.Get("a");
  EXPECT_FALSE(store_.Put("b", Features(60), At(100)).ok());
  held.reset();
  EXPECT_TRUE(store_.Put("b", Features(60), At(100)).ok());
}

TEST_F(FeatureStoreTest, PicturesAreDroppedWhateverTheSpecAndWhoeverNeedsThem) {
  const std::string picture(32, 'p'), other(32, 'o');
  ASSERT_TRUE(store_.Put(picture + "one spec", Features(20), At(0)).ok());
  ASSERT_TRUE(store_.Put(picture + "another", Features(20), At(0)).ok());
  ASSERT_TRUE(store_.Put(other + "one spec", Features(20), At(0)).ok());
  const auto held = store_.Get(picture + "one spec");
  EXPECT_EQ(store_.Drop({picture, std::string(32, 'x')}), 2u);
  EXPECT_EQ(store_.Drop({picture}), 0u);
  EXPECT_EQ(store_.Get(picture + "one spec"), nullptr);
  EXPECT_NE(store_.Get(other + "one spec"), nullptr);
  EXPECT_EQ(held->bytes.size(), 20u);
  EXPECT_EQ(store_.size_bytes(), 20u);
  EXPECT_TRUE(store_.Put(picture + "one spec", Features(80), At(0)).ok());
}

TEST_F(FeatureStoreTest, TheLeastRecentlyUsedLeavesFirst) {
  ASSERT_TRUE(store_.Put("a", Features(40), At(0)).ok());
  ASSERT_TRUE(store_.Put("b", Features(40), At(0)).ok());
  store_.Get("a");
  ASSERT_TRUE(store_.Put("c", Features(40), At(60)).ok());
  EXPECT_NE(store_.Get("a"), nullptr);
  EXPECT_EQ(store_.Get("b"), nullptr);
  EXPECT_NE(store_.Get("c"), nullptr);
}

TEST_F(FeatureStoreTest, NobodyLeavesForFeaturesThatDoNotFit) {
  ASSERT_TRUE(store_.Put("idle", Features(40), At(0)).ok());
  ASSERT_TRUE(store_.Put("fresh", Features(40), At(50)).ok());
  EXPECT_EQ(store_.Put("new", Features(80), At(60)).code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(store_.Get("idle"), nullptr);
  EXPECT_EQ(store_.size_bytes(), 80u);
  const std::string text = metrics_.Render();
  EXPECT_NE(text.find("llava_llm_feature_store_bytes 80"), std::string::npos) << text;
}

TEST_F(FeatureStoreTest, CountsAndRefusesWhatCanNeverFit) {
  EXPECT_EQ(store_.Put("a", Features(101), At(0)).code(), absl::StatusCode::kResourceExhausted);
  store_.Get("a");
  const std::string text = metrics_.Render();
  EXPECT_NE(text.find("llava_llm_feature_store_misses_total 1"), std::string::npos) << text;
  EXPECT_NE(text.find("llava_llm_feature_store_bytes 0"), std::string::npos) << text;
}

}  // namespace
}  // namespace llava
