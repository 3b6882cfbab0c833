#include "server/vision/feature_cache.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

using Clock = EncodeCall::Clock;

class FakeCall : public EncodeCall {
 public:
  explicit FakeCall(Clock::time_point deadline = Clock::time_point::max()) : deadline_(deadline) {}
  void Done(std::shared_ptr<const Features>, bool, const EncodeTimes&) override {}
  void Failed(const absl::Status&) override {}
  bool gone() const override { return is_gone; }
  Clock::time_point deadline() const override { return deadline_; }
  bool is_gone = false;

 private:
  const Clock::time_point deadline_;
};

std::shared_ptr<const Features> FeaturesOf(size_t bytes) {
  auto features = std::make_shared<Features>();
  features->bytes.assign(bytes, 'x');
  return features;
}

class FeatureCacheTest : public ::testing::Test {
 protected:
  void Keep(const std::string& key, size_t bytes) {
    ASSERT_TRUE(cache_.Begin(key, std::make_shared<FakeCall>()).leader);
    cache_.Finish(key, FeaturesOf(bytes));
  }
  bool Has(const std::string& key) {
    const auto begun = cache_.Begin(key, std::make_shared<FakeCall>());
    if (!begun.features) cache_.Finish(key, nullptr);
    return begun.features != nullptr;
  }
  Metrics metrics_{"vision"};
  FeatureCache cache_{100, metrics_};
};

TEST_F(FeatureCacheTest, OneComputationServesAllWhoAsk) {
  auto first = std::make_shared<FakeCall>(), second = std::make_shared<FakeCall>();
  EXPECT_TRUE(cache_.Begin("k", first).leader);
  const auto joined = cache_.Begin("k", second);
  EXPECT_FALSE(joined.leader);
  EXPECT_EQ(joined.features, nullptr);
  EXPECT_EQ(cache_.followers(), 1u);
  EXPECT_EQ(cache_.Finish("k", FeaturesOf(10)).size(), 2u);
  EXPECT_TRUE(Has("k"));
  EXPECT_EQ(cache_.followers(), 0u);
  EXPECT_EQ(cache_.size_bytes(), 11u);
}

TEST_F(FeatureCacheTest, AFailureIsNotKept) {
  EXPECT_TRUE(cache_.Begin("k", std::make_shared<FakeCall>()).leader);
  EXPECT_EQ(cache_.Finish("k", nullptr).size(), 1u);
  EXPECT_TRUE(cache_.Begin("k", std::make_shared<FakeCall>()).leader);
}

TEST_F(FeatureCacheTest, TheLeastRecentlyUsedLeavesFirst) {
  Keep("a", 40);
  Keep("b", 40);
  EXPECT_TRUE(Has("a"));
  Keep("c", 40);
  EXPECT_TRUE(Has("a"));
  EXPECT_FALSE(Has("b"));
  EXPECT_TRUE(Has("c"));
  EXPECT_EQ(cache_.entries(), 2u);
  const std::string text = metrics_.Render();
  EXPECT_NE(text.find("llava_vision_feature_cache_evictions_total 1"), std::string::npos);
  EXPECT_NE(text.find("llava_vision_feature_cache_bytes 82"), std::string::npos);
}

TEST_F(FeatureCacheTest, PicturesAreDroppedWhateverTheSpec) {
  const std::string picture(8, 'p'), other(8, 'o');
  const std::string rest(24, '.');
  for (const std::string& key : {picture + rest + "a", picture + rest + "b", other + rest + "a"}) {
    Keep(key, 0);
  }
  ASSERT_TRUE(cache_.Begin(picture + rest + "c", std::make_shared<FakeCall>()).leader);
  absl::StatusOr<size_t> dropped = 0;
  cache_.Drop({picture + rest}, [&dropped](auto tensors) { dropped = tensors; });
  EXPECT_EQ(dropped.value(), 2u);
  EXPECT_EQ(cache_.Finish(picture + rest + "c", FeaturesOf(0)).size(), 1u) << "who waits is served";
  for (const char* key : {"a", "b", "c"}) EXPECT_FALSE(Has(picture + rest + key)) << key;
  EXPECT_TRUE(Has(other + rest + "a"));
  EXPECT_EQ(cache_.size_bytes(), 33u);
  Keep(picture + rest + "c", 0);
  EXPECT_TRUE(Has(picture + rest + "c")) << "a new computation is kept";
}

TEST_F(FeatureCacheTest, WhatIsLargerThanTheBudgetDisturbsNobody) {
  Keep("a", 40);
  Keep("huge", 200);
  EXPECT_TRUE(Has("a"));
  EXPECT_FALSE(Has("huge"));
}

TEST_F(FeatureCacheTest, LateAndGoneCallsAreTakenOut) {
  const auto now = Clock::now();
  auto gone = std::make_shared<FakeCall>(), fine = std::make_shared<FakeCall>();
  auto late = std::make_shared<FakeCall>(now - std::chrono::seconds(1));
  gone->is_gone = true;
  cache_.Begin("k", gone);
  cache_.Begin("k", late);
  cache_.Begin("k", fine);
  EXPECT_EQ(cache_.followers(), 2u);
  auto pruned = cache_.Prune("k", now);
  EXPECT_EQ(pruned.gone.size(), 1u);
  EXPECT_EQ(pruned.expired.size(), 1u);
  EXPECT_FALSE(pruned.ended);
  EXPECT_EQ(cache_.followers(), 0u) << "the one that is left is the computation's own";
  fine->is_gone = true;
  EXPECT_TRUE(cache_.Prune("k", now).ended);
  EXPECT_EQ(cache_.followers(), 0u);
  EXPECT_TRUE(cache_.Begin("k", std::make_shared<FakeCall>()).leader) << "a new computation";
}

}  // namespace
}  // namespace llava
