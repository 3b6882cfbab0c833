#include "server/wire/feature_key.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/escaping.h"

namespace llava {
namespace {

v1::VisionSpec Spec() {
  v1::VisionSpec spec;
  spec.set_tower_digest(std::string(32, '\x11'));
  spec.set_image_mode(v1::IMAGE_MODE_PAD);
  spec.set_select_layer(-2);
  spec.set_select_feature(v1::SELECT_FEATURE_PATCH);
  return spec;
}

// The bytes of the definition in types.proto, written out.
TEST(FeatureKeyTest, SpecDigestHashesTheBytesThatTheProtoComments) {
  const std::string bytes = std::string("llava.v1.VisionSpec\0", 20) +
                            std::string("\x20\0\0\0", 4) + std::string(32, '\x11') +
                            std::string("\x02\0\0\0", 4) + std::string("\0\0\0\0", 4) +
                            "\xfe\xff\xff\xff" + std::string("\x01\0\0\0", 4);
  EXPECT_EQ(SpecDigest(Spec()), HashBytes(bytes));
}

TEST(FeatureKeyTest, EveryFieldOfTheSpecChangesTheDigest) {
  std::set<Sha256Digest> digests = {SpecDigest(Spec())};
  const auto add = [&](auto change) {
    v1::VisionSpec spec = Spec();
    change(spec);
    digests.insert(SpecDigest(spec));
  };
  add([](auto& spec) { spec.set_tower_digest(std::string(32, '\x12')); });
  add([](auto& spec) { spec.set_image_mode(v1::IMAGE_MODE_CROP); });
  add([](auto& spec) { spec.set_select_layer(-1); });
  add([](auto& spec) { spec.set_select_feature(v1::SELECT_FEATURE_CLS_PATCH); });
  add([](auto& spec) { spec.add_grid()->set_width(336); });
  add([](auto& spec) { spec.add_grid()->set_height(336); });
  EXPECT_EQ(digests.size(), 7u);
}

TEST(FeatureKeyTest, KeysSurviveTheWayThroughBytes) {
  const v1::FeatureKey key = MakeFeatureKey(HashBytes("picture"), Spec(), "cpu-f32");
  EXPECT_TRUE(CheckFeatureKey(key).ok());
  const v1::FeatureKey back = FeatureKeyFromBytes(FeatureKeyToBytes(key));
  EXPECT_EQ(back.SerializeAsString(), key.SerializeAsString());
  EXPECT_EQ(FeatureKeyName(key).substr(16, 1), "/");
  EXPECT_EQ(PictureOfKey(FeatureKeyToBytes(key)), key.image_sha256());
}

TEST(FeatureKeyTest, NamesTheFieldThatIsWrong) {
  v1::FeatureKey key = MakeFeatureKey(HashBytes("picture"), Spec(), "cpu-f32");
  key.set_image_sha256("short");
  EXPECT_EQ(CheckFeatureKey(key).message(),
            "FeatureKey.image_sha256 has 5 bytes, a SHA-256 has 32");
  key = MakeFeatureKey(HashBytes("picture"), Spec(), "");
  EXPECT_NE(CheckFeatureKey(key).message().find("numerics"), std::string::npos);
}

TEST(FeatureKeyTest, SpecsMustBeComplete) {
  EXPECT_TRUE(CheckVisionSpec(Spec()).ok());
  v1::VisionSpec spec = Spec();
  spec.set_image_mode(v1::IMAGE_MODE_UNSPECIFIED);
  EXPECT_FALSE(CheckVisionSpec(spec).ok());
  spec = Spec();
  spec.set_select_feature(static_cast<v1::SelectFeature>(77));
  EXPECT_FALSE(CheckVisionSpec(spec).ok());
  spec = Spec();
  spec.add_grid();
  EXPECT_FALSE(CheckVisionSpec(spec).ok()) << "a grid without the anyres mode";
  spec.set_image_mode(v1::IMAGE_MODE_ANYRES);
  EXPECT_TRUE(CheckVisionSpec(spec).ok());
  spec = Spec();
  spec.clear_tower_digest();
  EXPECT_FALSE(CheckVisionSpec(spec).ok());
}

}  // namespace
}  // namespace llava
