#include "server/gateway/feature_drops.h"

#include <gmock/gmock.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_backends.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using testing::IsEmpty;

class FeatureDropsTest : public testing::Test {
 protected:
  void Start(FeatureDropBounds bounds = {}) {
    vision_.Start([] {});
    llm_.Start([] {});
    drops_.emplace(vision_, llm_, bounds);
  }
  // Ids of so many pictures.
  static std::vector<std::string> Pictures(int count, const std::string& name = "") {
    std::vector<std::string> ids;
    for (int i = 0; i < count; ++i) ids.push_back(ToHex(HashBytes(absl::StrCat(name, i))));
    return ids;
  }
  static std::multiset<std::string> Set(const std::vector<std::string>& ids) {
    return {ids.begin(), ids.end()};
  }

  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  FakeVision fake_vision_;
  FakeLlm fake_llm_, other_llm_;
  BackendPool vision_{
      {"vision", "llava-vision", "--vision"}, fake_vision_.server().address(), gateway_metrics_};
  BackendPool llm_{{"llm", "llava-llm", "--llm"},
                   absl::StrCat(fake_llm_.server().address(), ",", other_llm_.server().address()),
                   gateway_metrics_};
  std::optional<FeatureDrops> drops_;
};

TEST_F(FeatureDropsTest, EveryProcessIsToldOnce) {
  Start();
  const auto pictures = Pictures(1000);
  drops_->Drop(pictures);
  EXPECT_TRUE(Eventually([&] { return fake_vision_.dropped() == Set(pictures); }));
  EXPECT_TRUE(Eventually([&] { return fake_llm_.dropped() == Set(pictures); }));
  EXPECT_TRUE(Eventually([&] { return other_llm_.dropped() == Set(pictures); }));
  drops_->Drop({});
  drops_->Drop(Pictures(1, "later"));
  EXPECT_TRUE(Eventually([&] { return other_llm_.dropped().size() == 1001; }));
  EXPECT_TRUE(Eventually([&] { return fake_vision_.dropped().size() == 1001; }));
}

TEST_F(FeatureDropsTest, LanguageServicesAreToldOfSessions) {
  Start();
  std::vector<std::string> sessions;
  for (int i = 0; i < 600; ++i) sessions.push_back(absl::StrCat("session ", i));
  const auto pictures = Pictures(300);
  drops_->Drop(pictures, sessions);
  for (const FakeLlm* llm : {&fake_llm_, &other_llm_}) {
    EXPECT_TRUE(Eventually([&] { return llm->dropped_sessions() == Set(sessions); }));
    EXPECT_TRUE(Eventually([&] { return llm->dropped() == Set(pictures); }));
  }
  EXPECT_TRUE(Eventually([&] { return fake_vision_.dropped() == Set(pictures); }));
  const int told = fake_vision_.drops();
  drops_->Drop({}, {"without pictures"});
  EXPECT_TRUE(Eventually([&] { return other_llm_.dropped_sessions().size() == 601; }));
  EXPECT_EQ(fake_vision_.drops(), told) << "it knows no sessions";
}

TEST_F(FeatureDropsTest, WhoIsDownIsToldWhenItIsBack) {
  other_llm_.server().Stop();
  Start();
  const auto pictures = Pictures(300);
  drops_->Drop(pictures);
  EXPECT_TRUE(Eventually([&] { return fake_llm_.dropped() == Set(pictures); }))
      << "the others hear at once";
  EXPECT_THAT(other_llm_.dropped(), IsEmpty());
  other_llm_.server().Start();
  EXPECT_TRUE(Eventually([&] { return other_llm_.dropped() == Set(pictures); }));
  // It goes while it is believed to be there.
  other_llm_.server().Stop();
  drops_->Drop(Pictures(10, "later"));
  EXPECT_TRUE(Eventually([&] { return fake_vision_.dropped().size() == 310; }));
  other_llm_.server().Start();
  EXPECT_TRUE(Eventually([&] { return other_llm_.dropped().size() == 310; }));
}

TEST_F(FeatureDropsTest, WhoIsBehindIsToldTheLastOnesThatAreKept) {
  other_llm_.server().Stop();
  Start({.waiting = 10, .for_later = 3});
  const auto pictures = Pictures(25);
  drops_->Drop(pictures);
  const std::vector<std::string> last(pictures.end() - 10, pictures.end());
  EXPECT_EQ(drops_->kept(), 10u);
  EXPECT_TRUE(Eventually([&] { return fake_vision_.dropped() == Set(last); }));
  EXPECT_TRUE(Eventually([&] { return fake_llm_.dropped() == Set(last); }));
  EXPECT_EQ(drops_->kept(), 10u) << "one has not heard";
  other_llm_.server().Start();
  EXPECT_TRUE(Eventually([&] { return other_llm_.dropped() == Set(last); }));
  EXPECT_TRUE(Eventually([&] { return drops_->kept() == 3; })) << "for those that come later";
}

TEST_F(FeatureDropsTest, AnEndDoesNotWaitForWhoDoesNotAnswer) {
  Start();
  fake_vision_.Set({.pause_drops = true});
  drops_->Drop(Pictures(1));
  EXPECT_TRUE(Eventually([&] { return fake_vision_.drops() == 1; }));
  const auto begin = std::chrono::steady_clock::now();
  drops_.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kSlowdown * std::chrono::seconds(5));
  EXPECT_THAT(fake_vision_.dropped(), IsEmpty());
}

}  // namespace
}  // namespace llava
