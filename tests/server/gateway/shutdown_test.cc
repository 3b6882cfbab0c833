// Drain and stop.

#include <gmock/gmock.h>

#include <future>

#include "google/rpc/error_details.pb.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

class ShutdownTest : public GatewayTest {};

TEST_F(ShutdownTest, RunningTurnsEndAndNewWorkIsRefused) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const std::string other = NewSession();
  const Answer answer =
      Ask(Question(session, "a b c d e f"), [&](grpc::ClientContext&, const Answer&) {
        admission_->StartDraining();
        const Answer refused = Ask(Question(other, "x"));
        EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
        google::rpc::RetryInfo retry;
        EXPECT_TRUE(GetDetail(FromGrpc(refused.status), &retry));
        v1::CreateSessionResponse created;
        EXPECT_EQ(stub_->CreateSession(Context().get(), {}, &created).error_code(),
                  grpc::StatusCode::UNAVAILABLE);
        EXPECT_EQ(Turns(session).size(), 1U) << "looking is still allowed";
        llm_.Release();
      });
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_TRUE(answer.is_finished);
  EXPECT_TRUE(
      admission_->WaitUntilIdle(CondVar::Clock::now() + kSlowdown * std::chrono::seconds(60)));
}

TEST_F(ShutdownTest, StopLeavesAnswersToTheNextProcess) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  std::promise<void> begun;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(Question(session, "a b c d e f g h i j k l m n o p"),
               [&](grpc::ClientContext&, const Answer&) { begun.set_value(); });
  });
  begun.get_future().wait();
  StopGateway();
  const Answer answer = asking.get();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("ResumeTurn"));
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(GetDetail(FromGrpc(answer.status), &retry));
  llm_.Set({});
  StartGateway();
  const Answer rest =
      Resume(session, answer.started.turn_id(), answer.text.size(), answer.started.restarts());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(answer.text + rest.text, "a b c d e f g h i j k l m n o p! pictures: 0, turns: 1");
  EXPECT_EQ(rest.started.restarts(), 1U);
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_FINISHED);
}

// Whoever is told that his question was not taken does not find it in his session.
TEST_F(ShutdownTest, AQuestionThatIsBrokenOffBeforeItIsRecordedIsNot) {
  llm_.Set({.pause_counts = true});
  StartGateway();
  v1::CreateSessionRequest create;
  create.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  const std::string session = NewSession(create);
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, "a b c")); });
  ASSERT_TRUE(Eventually([&] { return llm_.counts() == 1; }));
  admission_->StartDraining();
  gateway_->Stop();
  EXPECT_TRUE(admission_->WaitUntilIdle(CondVar::Clock::now())) << "it waited in vain";
  const grpc::Status status = asking.get().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("ask again"));
  EXPECT_EQ(Turns(session).size(), 0U);
  StopGateway();  // returns
}

TEST_F(ShutdownTest, ACountOfTokensIsNotWaitedFor) {
  llm_.Set({.pause_counts = true});
  StartGateway();
  const std::string session = NewSession();
  v1::ChatServiceCountTokensRequest request;
  request.set_session_id(session);
  request.set_text("a b c");
  auto counting = std::async(std::launch::async, [&] {
    v1::ChatServiceCountTokensResponse response;
    return stub_->CountTokens(Context(std::chrono::hours(1)).get(), request, &response);
  });
  ASSERT_TRUE(Eventually([&] { return llm_.counts() == 1; }));
  admission_->StartDraining();
  gateway_->Stop();
  const grpc::Status status = counting.get();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("shutting down"));
}

TEST_F(ShutdownTest, ALoadUnderWayIsNotWaitedFor) {
  llm_.models().PauseLoads();
  StartGateway();
  auto loading = std::async(std::launch::async, [&] {
    v1::LoadModelRequest request;
    request.mutable_model()->set_name("emoji");
    request.mutable_model()->set_version(2);
    v1::LoadModelResponse response;
    return models_->LoadModel(Context(std::chrono::hours(1)).get(), request, &response);
  });
  ASSERT_TRUE(Eventually([&] { return llm_.models().changes() == 1; }));
  admission_->StartDraining();
  gateway_->Stop();
  // Before the server ends all calls.
  const grpc::Status status = loading.get();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("shutting down"));
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(GetDetail(FromGrpc(status), &retry));
  v1::SetLabelRequest label;
  label.set_name("emoji");
  label.set_label("stable");
  label.set_version(1);
  v1::SetLabelResponse labelled;
  EXPECT_EQ(models_->SetLabel(Context().get(), label, &labelled).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ShutdownTest, AnAnswerWithoutASessionEnds) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  std::promise<void> begun;
  v1::ChatRequest request;
  request.add_messages()->set_role(v1::ROLE_USER);
  request.mutable_messages(0)->set_text("a b c d e f g h i j k l m n o p");
  auto asking = std::async(std::launch::async, [&] {
    return Ask(request, [&](grpc::ClientContext&, const Answer&) { begun.set_value(); });
  });
  begun.get_future().wait();
  StopGateway();
  const Answer answer = asking.get();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("stopped"));
}

}  // namespace
}  // namespace llava
