// Every metric of the gateway moves under a chat with faults.

#include <gmock/gmock.h>

#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class MetricsTest : public GatewayTest {};

TEST_F(MetricsTest, EachOneMoves) {
  llm_.Set({.pause_after = 1});
  key_ = "secret";
  options_.keys_file = folder_.At("keys.yaml");
  std::ofstream(options_.keys_file)
      << "- {name: ann, concurrent-turns: 1, sha256: " << ToHex(HashBytes(key_)) << "}\n";
  StartGateway();
  // Rates want a zero before the first question fails.
  for (const std::string question : {"Chat", "RegenerateTurn", "chat.completions"}) {
    const std::string label = "{method=\"" + question + "\"} 0\n";
    for (const std::string name : {"faults_total", "duration_seconds_count"}) {
      EXPECT_THAT(metrics_->Render(), HasSubstr("llava_gateway_request_" + name + label));
    }
  }
  // A gauge may follow readiness, which the other service's thread may have told.
  EXPECT_TRUE(
      Eventually([&] { return Metric("llava_gateway_backend_up{backend=\"vision\"}") == 1; }));
  const std::string session = NewSession();
  bool running = false;
  Ask(Question(session, "a b", {FakePicture(1)}), [&](grpc::ClientContext&, const Answer&) {
    running = Metric("llava_gateway_turns_running") == 1;
    EXPECT_EQ(Ask(Question(session, "too many")).status.error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
    llm_.Set({.delay = std::chrono::milliseconds(5)});
    llm_.Release();
  });
  EXPECT_TRUE(running);
  Ask(Question(session, "c"));
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "fault"}, .failures = 1});
  Ask(Question(session, "d"));
  Ask(Question(session, "x", {"no picture"}));

  // Who hears of the end of a call finds it counted.
  EXPECT_EQ(Metric("llava_gateway_request_duration_seconds_count{method=\"Chat\"}"), 5);
  EXPECT_EQ(Metric("llava_gateway_requests_total{code=\"OK\",method=\"Chat\"}"), 2);
  EXPECT_EQ(Metric("llava_gateway_requests_total{code=\"INTERNAL\",method=\"Chat\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_requests_total{code=\"INVALID_ARGUMENT\",method=\"Chat\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_turns_total{finish_reason=\"stop\"}"), 2);
  EXPECT_EQ(Metric("llava_gateway_turns_total{finish_reason=\"error\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_turns_running"), 0);
  EXPECT_EQ(Metric("llava_gateway_turn_duration_seconds_count"), 3);
  EXPECT_EQ(Metric("llava_gateway_time_to_first_token_seconds_count"), 2);
  EXPECT_EQ(Metric("llava_gateway_time_between_tokens_seconds_count"), 5 + 4);
  EXPECT_EQ(Metric("llava_gateway_tokens_total{kind=\"generated\"}"), 6 + 5);
  EXPECT_EQ(Metric("llava_gateway_tokens_total{kind=\"image\"}"), 8);
  EXPECT_GT(Metric("llava_gateway_tokens_total{kind=\"text\"}"), 0);
  EXPECT_EQ(Metric("llava_gateway_feature_cache_total{result=\"miss\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_feature_cache_total{result=\"hit\"}"), 2);
  EXPECT_EQ(Metric("llava_gateway_images_total{result=\"accepted\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_images_total{result=\"refused\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_image_bytes_total"), FakePicture(1).size());
  EXPECT_GT(Metric("llava_gateway_store_commit_seconds_count"), 4);
  EXPECT_EQ(Metric("llava_gateway_backend_errors_total{backend=\"llm\",code=\"INTERNAL\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_sessions"), 1);
  llm_.Set({.fail_after_deltas = 1, .deaths = 1});
  Ask(Question(session, "two workers"));
  EXPECT_EQ(Metric("llava_gateway_worker_deaths_total"), 1);
  vision_.server().Stop();
  Ask(Question(session, "e", {FakePicture(2)}));
  EXPECT_EQ(Metric("llava_gateway_request_faults_total{method=\"Chat\"}"), 2);
  EXPECT_TRUE(
      Eventually([&] { return Metric("llava_gateway_backend_up{backend=\"vision\"}") == 0; }));

  // A metric that is new here must be moved above, or be one of those that are 0 at rest
  // (turn_gate_test.cc moves two, upload_test.cc two, rollout_test.cc one, turn_faults_test.cc
  // ejects, store_faults_test.cc fails), or in a process that found nothing to go on with:
  // resume_test.cc.
  const std::set<std::string> at_rest = {
      "llava_gateway_turns_running",           "llava_gateway_store_queue",
      "llava_gateway_turns_taken_up_total",    "llava_gateway_turns_given_up_total",
      "llava_gateway_turns_waiting",           "llava_gateway_overloads_total",
      "llava_gateway_backend_ejections_total", "llava_gateway_request_bytes",
      "llava_gateway_rollouts_total",          "llava_gateway_transfer_bytes",
      "llava_gateway_store_failures_total"};
  std::map<std::string, double> sums;
  std::istringstream lines(metrics_->Render());
  for (std::string line; std::getline(lines, line);) {
    if (!absl::StartsWith(line, "llava_gateway_")) continue;
    sums[line.substr(0, line.find_first_of("{ "))] += std::stod(line.substr(line.rfind(' ')));
  }
  std::vector<std::string> still;
  for (const auto& [name, sum] : sums) {
    if (sum == 0 && !at_rest.contains(name)) still.push_back(name);
  }
  EXPECT_THAT(still, IsEmpty());
}

}  // namespace
}  // namespace llava
