#include "server/wire/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace llava {
namespace {

using Change = std::function<void(v1::SamplingParams&)>;

TEST(SamplingTest, EveryRangeIsCheckedAndTheFieldIsNamed) {
  const std::vector<std::pair<std::string, Change>> bad = {
      {"temperature", [](auto& p) { p.set_temperature(2.1f); }},
      {"temperature", [](auto& p) { p.set_temperature(-0.1f); }},
      {"temperature", [](auto& p) { p.set_temperature(NAN); }},
      {"top_p", [](auto& p) { p.set_top_p(0); }},
      {"top_p", [](auto& p) { p.set_top_p(1.01f); }},
      {"min_p", [](auto& p) { p.set_min_p(1.5f); }},
      {"repetition_penalty", [](auto& p) { p.set_repetition_penalty(0); }},
      {"repetition_penalty", [](auto& p) { p.set_repetition_penalty(1e-39f); }},
      {"repetition_penalty", [](auto& p) { p.set_repetition_penalty(0.0099f); }},
      {"repetition_penalty", [](auto& p) { p.set_repetition_penalty(2.01f); }},
      {"presence_penalty", [](auto& p) { p.set_presence_penalty(-2.5f); }},
      {"frequency_penalty", [](auto& p) { p.set_frequency_penalty(NAN); }},
      {"max_new_tokens", [](auto& p) { p.set_max_new_tokens(0); }},
      {"logprobs", [](auto& p) { p.set_logprobs(21); }},
      {"stop", [](auto& p) { p.add_stop(""); }},
      {"stop", [](auto& p) { p.add_stop(std::string(257, 'x')); }},
      {"stop",
       [](auto& p) {
         for (int i = 0; i < 9; ++i) p.add_stop("x");
       }},
      {"stop_token_ids",
       [](auto& p) {
         for (int i = 0; i < 17; ++i) p.add_stop_token_ids(5);
       }},
      {"ignore_eos",
       [](auto& p) {
         p.set_ignore_eos(true);
         p.mutable_constraint()->mutable_json_object();
       }},
      {"constraint names no kind", [](auto& p) { p.mutable_constraint(); }},
      {"constraint names no kind",  // what only newer clients know
       [](auto& p) { p.mutable_constraint()->ParseFromString("\x9a\x06\x01x"); }},
      {"constraint (bytes)",
       [](auto& p) { p.mutable_constraint()->set_json_schema(std::string(66'000, ' ')); }},
      {"constraint.choices",
       [](auto& p) {
         for (int i = 0; i < 1001; ++i) p.mutable_constraint()->mutable_choices()->add_texts("a");
       }},
  };
  for (const auto& [field, change] : bad) {
    v1::SamplingParams params;
    change(params);
    const absl::Status status = CheckSampling(params);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << params.ShortDebugString();
    EXPECT_NE(std::string(status.message()).find("SamplingParams." + field), std::string::npos)
        << status;
  }
}

TEST(SamplingTest, TheEdgesAreAllowed) {
  v1::SamplingParams params;
  EXPECT_TRUE(CheckSampling(params).ok());
  params.set_temperature(0);
  params.set_top_p(1);
  params.set_min_p(1);
  params.set_repetition_penalty(0.01f);
  EXPECT_TRUE(CheckSampling(params).ok());
  params.set_repetition_penalty(2);
  params.set_presence_penalty(-2);
  params.set_frequency_penalty(2);
  params.set_max_new_tokens(1);
  params.set_logprobs(20);
  params.add_stop(std::string(256, 'x'));
  EXPECT_TRUE(CheckSampling(params).ok());
}

TEST(SamplingTest, OnlyUnsetFieldsTakeDefaults) {
  v1::SamplingParams defaults;
  defaults.set_temperature(0.2f);
  defaults.set_top_p(0.7f);
  defaults.set_top_k(5);
  defaults.set_min_p(0.1f);
  defaults.set_repetition_penalty(1.1f);
  defaults.set_presence_penalty(0.3f);
  defaults.set_frequency_penalty(0.4f);
  defaults.set_seed(9);
  defaults.set_max_new_tokens(512);
  defaults.add_stop("###");
  defaults.add_stop_token_ids(13);
  defaults.set_logprobs(2);
  defaults.mutable_constraint()->mutable_json_object();
  EXPECT_EQ(WithDefaults({}, defaults).SerializeAsString(), defaults.SerializeAsString());

  v1::SamplingParams own;
  own.set_temperature(0);
  own.set_max_new_tokens(3);
  own.add_stop("!");
  own.mutable_constraint()->mutable_text();
  const v1::SamplingParams merged = WithDefaults(own, defaults);
  EXPECT_EQ(merged.temperature(), 0);
  EXPECT_EQ(merged.max_new_tokens(), 3u);
  EXPECT_EQ(merged.stop_size(), 1);
  EXPECT_EQ(merged.stop(0), "!");
  EXPECT_EQ(merged.top_k(), 5u);
  EXPECT_FALSE(HasConstraint(merged));
}

}  // namespace
}  // namespace llava
