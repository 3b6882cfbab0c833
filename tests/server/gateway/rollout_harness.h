#pragma once

// A gateway whose language service has several versions of a model, for tests.

#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "llava/v1/rollout.grpc.pb.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {

class RolloutTest : public GatewayTest {
 protected:
  RolloutTest() {
    options_.canary_share = 0.5;
    options_.rollout.period = std::chrono::milliseconds(20);
    options_.rollout.limits.min_turns = 20;
    options_.rollout.limits.min_time = std::chrono::milliseconds(0);
    options_.rollout.limits.latency_ratio = 1000;  // the fakes' times are the machine's
  }

  void Start(const std::vector<uint64_t>& versions) {
    Serve(versions);
    StartGateway();
    rollouts_ = v1::RolloutService::NewStub(channel_);
  }
  void Serve(const std::vector<uint64_t>& versions) {
    std::vector<v1::ModelInfo> models;
    for (const uint64_t version : versions) models.push_back(FakeLanguageModel("emoji", version));
    llm_.models().Set(models);
  }
  void Label(const std::string& label, uint64_t version) {
    v1::SetLabelRequest request;
    request.set_name("emoji");
    request.set_label(label);
    request.set_version(version);
    v1::SetLabelResponse response;
    const auto status = models_->SetLabel(Context().get(), request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  // Of a session's next answer.
  uint64_t VersionOf(const v1::ChatRequest& question) {
    const Answer answer = Ask(question);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.started.model().version(), answer.finished.model().version());
    return answer.finished.model().version();
  }
  v1::Rollout Rollout() {
    v1::GetRolloutRequest request;
    request.set_name("emoji");
    v1::GetRolloutResponse response;
    const auto status = rollouts_->GetRollout(Context().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.rollouts().empty() ? v1::Rollout() : response.rollouts(0);
  }
  std::set<std::string> Labels(uint64_t version) {
    v1::ListModelsRequest request;
    request.set_name("emoji");
    v1::ListModelsResponse response;
    EXPECT_TRUE(models_->ListModels(Context().get(), request, &response).ok());
    for (const auto& model : response.models()) {
      if (model.model().version() == version) return {model.labels().begin(), model.labels().end()};
    }
    return {};
  }
  // Until the guard has looked at this canary, and the services have told it of their health.
  void AwaitLook(uint64_t canary) {
    ASSERT_TRUE(Eventually([&] {
      const v1::Rollout rollout = Rollout();
      return rollout.canary().version() == canary && !rollout.reason().empty() &&
             rollout.canary_evidence().self_test_drift() >= 0;
    }));
  }
  // Turns of both versions, by number.
  void Traffic(int turns) {
    for (int i = 0; i < turns; ++i) {
      for (const uint64_t version : {1, 2}) {
        auto question = Question(NewSession(), "a b");
        question.mutable_model()->set_version(version);
        Ask(question);
      }
    }
  }

  std::unique_ptr<v1::RolloutService::Stub> rollouts_;
};

}  // namespace llava
