#include "server/gateway/model_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/fake_backends.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ParseModelChoiceTest, NameVersionLabel) {
  EXPECT_EQ(ParseModelChoice("")->name, "");
  EXPECT_EQ(ParseModelChoice("emoji")->name, "emoji");
  EXPECT_FALSE(ParseModelChoice("emoji")->is_fixed());
  EXPECT_EQ(ParseModelChoice("emoji@17")->version, 17u);
  EXPECT_EQ(ParseModelChoice("org/emoji@canary")->name, "org/emoji");
  EXPECT_EQ(ParseModelChoice("emoji@canary")->label, "canary");
  EXPECT_EQ(ParseModelChoice("emoji@3a")->label, "3a");
  EXPECT_EQ(ParseModelChoice("@canary")->name, "") << "of the default model";
}

TEST(ParseModelChoiceTest, RefusesWhatNamesNothing) {
  for (const char* text :
       {"emoji@", "emoji@0", "emoji@99999999999999999999", "emoji@a b", "emoji@\n"}) {
    EXPECT_EQ(ParseModelChoice(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_FALSE(ParseModelChoice("m@" + std::string(65, 'x')).ok());
}

TEST(ReadModelChoiceTest, FieldsAndSuffixMustNotDisagree) {
  v1::ModelVersion model;
  model.set_name("emoji");
  model.set_version(3);
  EXPECT_EQ(ReadModelChoice(model, "")->version, 3u);
  EXPECT_FALSE(ReadModelChoice(model, "stable").ok());
  model.set_name("emoji@4");
  EXPECT_FALSE(ReadModelChoice(model, "").ok());
  model.clear_version();
  EXPECT_EQ(ReadModelChoice(model, "")->version, 4u);
  EXPECT_FALSE(ReadModelChoice(model, "stable").ok());
  model.set_name("emoji");
  EXPECT_EQ(ReadModelChoice(model, "stable")->label, "stable");
  EXPECT_FALSE(ReadModelChoice(model, "../x").ok());
}

class EligibleTest : public testing::Test {
 protected:
  void Serve(uint64_t version, const std::vector<std::string>& labels = {}) {
    versions_.push_back(FakeLanguageModel("m", version));
    for (const std::string& label : labels) versions_.back().add_labels(label);
  }
  std::vector<uint64_t> Order(const ModelChoice& choice, double share = 0) {
    std::vector<uint64_t> order;
    const auto eligible = Eligible(versions_, choice, share);
    EXPECT_TRUE(eligible.ok()) << eligible.status();
    if (!eligible.ok()) return order;
    for (const auto& each : *eligible) order.push_back(each.model().version());
    return order;
  }
  std::vector<v1::ModelInfo> versions_;
};

TEST_F(EligibleTest, TheNewestWithoutLabels) {
  for (const uint64_t version : {2, 9, 5}) Serve(version);
  EXPECT_THAT(Order({}), ElementsAre(9, 5, 2));
}

TEST_F(EligibleTest, TheStableOneBeforeNewerOnes) {
  Serve(1), Serve(2, {"stable"}), Serve(3, {"canary"}), Serve(4);
  EXPECT_THAT(Order({}), ElementsAre(2, 4, 1, 3));
  EXPECT_THAT(Order({}, 1), ElementsAre(3, 2, 4, 1)) << "every session is drawn";
}

TEST_F(EligibleTest, ARejectedOneIsServedToThoseWhoAskForItOnly) {
  Serve(1), Serve(2, {"rejected-2", "canary"}), Serve(3, {"rejected-2"});
  EXPECT_THAT(Order({}, 1), ElementsAre(3, 1)) << "the label of another version says nothing";
  EXPECT_THAT(Order({.version = 2}), ElementsAre(2));
  EXPECT_THAT(Order({.label = "rejected-2"}), ElementsAre(3));
  versions_.erase(versions_.begin());
  versions_.pop_back();
  const auto nothing = Eligible(versions_, {}, 0);
  EXPECT_EQ(nothing.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(nothing.status().message()), HasSubstr("rejected"));
  versions_[0].add_labels("stable");
  EXPECT_THAT(Order({}), ElementsAre(2)) << "people have the last word";
}

TEST_F(EligibleTest, WhatIsAskedForOrNothing) {
  Serve(1, {"stable"}), Serve(2);
  EXPECT_THAT(Order({.version = 2}, 1), ElementsAre(2));
  EXPECT_THAT(Order({.label = "stable"}), ElementsAre(1));
  const auto version = Eligible(versions_, {.version = 7}, 0);
  EXPECT_EQ(version.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(version.status().message()),
              HasSubstr("model \"m\" has no version 7; it has: 2, 1 (stable)"));
  const auto label = Eligible(versions_, {.label = "canary"}, 0);
  EXPECT_THAT(std::string(label.status().message()),
              HasSubstr("no version labelled \"canary\"; it has: 2, 1 (stable)"));
}

TEST_F(EligibleTest, TheNewerOfTwoThatHaveALabelForAMoment) {
  Serve(1, {"stable"}), Serve(2, {"stable"});
  EXPECT_THAT(Order({.label = "stable"}), ElementsAre(2));
  EXPECT_THAT(Order({}), ElementsAre(2, 1));
}

TEST(IsCanaryKeyTest, SharesAreKeptAndOnlyGrow) {
  int tenth = 0, half = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string key = absl::StrCat("session-", i);
    const bool is_tenth = IsCanaryKey(key, "m", 0.1), is_half = IsCanaryKey(key, "m", 0.5);
    tenth += is_tenth ? 1 : 0;
    half += is_half ? 1 : 0;
    EXPECT_TRUE(!is_tenth || is_half) << key << " would leave the canary when the share grows";
    EXPECT_EQ(is_tenth, IsCanaryKey(key, "m", 0.1));
    EXPECT_FALSE(IsCanaryKey(key, "m", 0));
    EXPECT_TRUE(IsCanaryKey(key, "m", 1));
  }
  EXPECT_NEAR(tenth, 1000, 100);  // more than 3 standard deviations
  EXPECT_NEAR(half, 5000, 160);
}

TEST(IsCanaryKeyTest, OtherModelsDrawOthers) {
  int both = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string key = absl::StrCat(i);
    both += IsCanaryKey(key, "a", 0.5) && IsCanaryKey(key, "b", 0.5) ? 1 : 0;
  }
  EXPECT_NEAR(both, 2500, 150);
}

}  // namespace
}  // namespace llava
