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

}  // namespace
}  // namespace llava
