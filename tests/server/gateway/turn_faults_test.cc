// Turns that end early: cancellation, clients and services that go away, deadlines.

#include <gmock/gmock.h>

#include <future>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr char kLate[] = "llava_gateway_requests_total{code=\"DEADLINE_EXCEEDED\",method=\"Chat\"}";
constexpr char kFaults[] = "llava_gateway_request_faults_total{method=\"Chat\"}";

class TurnFaultsTest : public GatewayTest {
 protected:
  v1::CancelTurnResponse Cancel(const std::string& session, const std::string& turn = "") {
    v1::CancelTurnRequest request;
    request.set_session_id(session);
    request.set_turn_id(turn);
    v1::CancelTurnResponse response;
    const auto status = stub_->CancelTurn(Context().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  // The session still answers, and the prompt is in order.
  void ExpectUsable(const std::string& session) {
    const Answer answer = Ask(Question(session, "still there"));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_THAT(answer.text, HasSubstr("still there!"));
  }
};

TEST_F(TurnFaultsTest, CancelTurnKeepsTheTextSoFar) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = Ask(Question(session, "a b c d e f g h i j k l m n o p"),
                            [&](grpc::ClientContext&, const Answer& so_far) {
                              EXPECT_TRUE(Cancel(session, so_far.started.turn_id()).was_running());
                            });
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_TRUE(answer.is_finished);
  EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_LT(answer.deltas, 16);
  EXPECT_TRUE(Eventually([&] { return llm_.cancelled() == 1; })) << "generation must stop";
  const auto turns = Turns(session);
  EXPECT_EQ(turns[0].answer_text(), answer.text);
  EXPECT_EQ(turns[0].state(), v1::TURN_STATE_FAILED);
  EXPECT_EQ(turns[0].finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_FALSE(Cancel(session, answer.started.turn_id()).was_running());
  EXPECT_FALSE(Cancel(session).was_running());
  llm_.Set({});
  ExpectUsable(session);
  EXPECT_EQ(llm_.last_request().messages_size(), 3) << "what was said stays in the prompt";
}

TEST_F(TurnFaultsTest, CancelTurnWhileThePictureIsEncoded) {
  vision_.Set({.pause = true});
  StartGateway();
  const std::string session = NewSession();
  auto asking =
      std::async(std::launch::async, [&] { return Ask(Question(session, "x", {FakePicture(1)})); });
  ASSERT_TRUE(Eventually([&] { return vision_.encodes() == 1; }));
  EXPECT_TRUE(Cancel(session).was_running());
  const Answer answer = asking.get();
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(llm_.generates(), 0);
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, CancelTurnWhileTheQuestionIsFittedIntoItsContext) {
  llm_.Set({.pause_counts = true});
  StartGateway();
  v1::CreateSessionRequest create;
  create.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  const std::string session = NewSession(create);
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, "x")); });
  ASSERT_TRUE(Eventually([&] { return llm_.counts() == 1; }));
  EXPECT_TRUE(Cancel(session).was_running());
  const Answer answer = asking.get();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("CancelTurn"));
  EXPECT_THAT(Turns(session), IsEmpty());
  llm_.Set({});
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, AClientThatLeavesStopsTheAnswerIfItSaysSo) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  v1::ChatRequest request = Question(session, "a b c d e f g h i j k l m n o p");
  request.set_on_disconnect(v1::ON_DISCONNECT_CANCEL);
  const Answer answer = AskAndLeave(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(Eventually([&] { return llm_.cancelled() == 1; }));
  ASSERT_TRUE(Eventually([&] { return Turns(session)[0].state() == v1::TURN_STATE_FAILED; }));
  EXPECT_EQ(Turns(session)[0].finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_THAT(Turns(session)[0].answer_text(), HasSubstr("a"));
  llm_.Set({});
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_running") == 0; }));
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, OneTurnAtATime) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const std::string other = NewSession();
  const Answer answer =
      Ask(Question(session, "a b c d e f"), [&](grpc::ClientContext&, const Answer& so_far) {
        const Answer second = Ask(Question(session, "me too"));
        EXPECT_EQ(second.status.error_code(), grpc::StatusCode::ABORTED);
        EXPECT_THAT(second.status.error_message(), HasSubstr(so_far.started.turn_id()));
        llm_.Set({});
        EXPECT_TRUE(Ask(Question(other, "elsewhere")).status.ok());
        llm_.Release();
      });
  EXPECT_TRUE(answer.status.ok());
  EXPECT_EQ(Turns(session).size(), 1U);
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, ManySessionsAtATime) {
  llm_.Set({.delay = milliseconds(2)});
  StartGateway();
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 16; ++i) {
    answers.push_back(std::async(std::launch::async, [this, i] {
      return Ask(Question(NewSession(), "number " + std::to_string(i), {FakePicture(i % 4)}));
    }));
  }
  for (int i = 0; i < 16; ++i) {
    const Answer answer = answers[i].get();
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.text, "number " + std::to_string(i) + "! pictures: 1, turns: 1");
  }
}

TEST_F(TurnFaultsTest, MissingFeaturesArePutAndAskedAgainOnce) {
  StartGateway();
  const std::string session = NewSession();
  ASSERT_TRUE(Ask(Question(session, "x", {FakePicture(1), FakePicture(2)})).status.ok());
  llm_.ForgetFeatures();
  const Answer answer = Ask(Question(session, "y"));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "y! pictures: 2, turns: 2");
  EXPECT_EQ(llm_.generates(), 3);
  EXPECT_EQ(vision_.encodes(), 4);

  llm_.Set({.forget_features = true});
  const Answer lost = Ask(Question(session, "z"));
  EXPECT_EQ(lost.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(lost.status.error_message(), HasSubstr("did not keep the features"));
  EXPECT_EQ(llm_.generates(), 5) << "tried twice, not for ever";
  llm_.Set({});
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, FeaturesAlreadyThereAreNotSentTwice) {
  StartGateway();
  ASSERT_TRUE(Ask(Question(NewSession(), "x", {FakePicture(1)})).status.ok());
  StopGateway();
  StartGateway();  // has forgotten what the LLM service holds
  EXPECT_TRUE(Ask(Question(NewSession(), "x", {FakePicture(1)})).status.ok());
  EXPECT_EQ(llm_.puts(), 2);
}

TEST_F(TurnFaultsTest, ASecondTryWhenTheServiceHasTooMuchToDo) {
  StartGateway();
  const std::string session = NewSession();
  const grpc::Status busy = ToGrpc(OverloadedError("the queue is full", milliseconds(100)));
  llm_.Set({.failure = busy, .failures = 1});
  EXPECT_TRUE(Ask(Question(session, "once")).status.ok());
  EXPECT_EQ(llm_.generates(), 2);

  llm_.Set({.failure = busy, .failures = 2});
  const Answer twice = Ask(Question(session, "twice"));
  EXPECT_EQ(twice.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(twice.status.error_message(), HasSubstr("llm service at " + options_.llm));
  EXPECT_EQ(llm_.generates(), 4);
  llm_.Set({});
  ExpectUsable(session);
  // once + its answer, (twice had none), the new question.
  EXPECT_EQ(llm_.last_request().messages_size(), 3);
}

TEST_F(TurnFaultsTest, AServiceOutOfReachIsWaitedFor) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set({.failures = 3});  // the transport says so: nobody was there
  EXPECT_TRUE(Ask(Question(session, "x")).status.ok());
  EXPECT_EQ(llm_.generates(), 4);
  StopGateway();

  options_.continue_timeout = milliseconds(400);
  StartGateway();
  llm_.Set({.failures = 1000});
  const Answer never = Ask(Question(session, "y"));
  EXPECT_EQ(never.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(never.status.error_message(), HasSubstr("is not reachable"));
  llm_.Set({});
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, APromptThatKillsTwoWorkersIsGivenUp) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set({.failures = 1000, .arrives = true});
  const Answer answer = Ask(Question(session, "x"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("given up: 2 language workers died"));
  EXPECT_EQ(llm_.generates(), 2);
  llm_.Set({});
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, AFaultOfTheModelEndsTheAnswer) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set(
      {.failure = {grpc::StatusCode::INTERNAL, "a logit is not finite"}, .fail_after_deltas = 2});
  InitLogging({"test", "info", "text"});
  testing::internal::CaptureStderr();
  const Answer late = Ask(Question(session, "a b c d"));
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::ContainsRegex("error \\[test\\] turn ended [^\n]*code=INTERNAL "
                                     "error=[^\n]*a logit is not finite"));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(late.text, "a b");
  EXPECT_FALSE(late.is_finished);
  EXPECT_EQ(llm_.generates(), 1) << "it would only happen again";
  const auto turns = Turns(session);
  EXPECT_EQ(turns.back().state(), v1::TURN_STATE_FAILED);
  EXPECT_EQ(turns.back().finish_reason(), v1::FINISH_REASON_ERROR);
  EXPECT_EQ(turns.back().answer_text(), "a b");
  EXPECT_THAT(turns.back().error_message(), HasSubstr("a logit is not finite"));
  const Answer again = Resume(session, late.started.turn_id(), 1);
  EXPECT_EQ(again.text, " b");
  EXPECT_EQ(again.status.error_code(), grpc::StatusCode::INTERNAL);
  llm_.Set({});
  ExpectUsable(session);
  EXPECT_EQ(llm_.last_request().messages_size(), 3) << "its beginning stays in the prompt";
}

TEST_F(TurnFaultsTest, ServicesThatAreDownAreNamed) {
  options_.continue_timeout = milliseconds(300);
  StartGateway();
  const std::string session = NewSession();
  vision_.server().Stop();
  const Answer blind = Ask(Question(session, "x", {FakePicture(1)}));
  EXPECT_EQ(blind.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(blind.status.error_message(),
              HasSubstr("vision service at " + options_.vision + " is not reachable"));
  EXPECT_THAT(blind.status.error_message(), HasSubstr("start llava-vision or check --vision"));
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(GetDetail(FromGrpc(blind.status), &retry));
  AwaitReady(false);
  EXPECT_THAT(reason(), HasSubstr("vision service"));
  EXPECT_TRUE(Ask(Question(session, "text alone needs no eyes")).status.ok());

  llm_.server().Stop();
  const Answer mute = Ask(Question(session, "y"));
  EXPECT_EQ(mute.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(mute.status.error_message(),
              HasSubstr("llm service at " + options_.llm + " is not reachable"));
  EXPECT_THAT(mute.status.error_message(), HasSubstr("start llava-llm or check --llm"));

  vision_.server().Start();
  llm_.server().Start();
  AwaitReady(true);
  EXPECT_TRUE(Ask(Question(session, "x", {FakePicture(1)})).status.ok());
}

TEST_F(TurnFaultsTest, StartsBeforeItsServices) {
  vision_.server().Stop();
  llm_.server().Stop();
  StartGateway(/*wait=*/false);
  AwaitReady(false);
  const std::string session = NewSession();  // its model is chosen by the first turn
  EXPECT_EQ(Ask(Question(session, "x")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(Turns(session), IsEmpty());
  vision_.server().Start();
  llm_.server().Start();
  AwaitReady(true);
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, AnErrorOfTheTowerEndsOnlyItsTurn) {
  options_.continue_timeout = milliseconds(300);
  StartGateway();
  const std::string session = NewSession();
  vision_.Set(
      {.failure = {grpc::StatusCode::INVALID_ARGUMENT, "the png file is broken"}, .failures = 1});
  const Answer broken = Ask(Question(session, "x", {FakePicture(1)}));
  EXPECT_EQ(broken.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(broken.status.error_message(), HasSubstr("the png file is broken"));
  EXPECT_THAT(broken.status.error_message(), HasSubstr("picture "));
  ExpectUsable(session);
  EXPECT_EQ(llm_.last_request().messages_size(), 1) << "the broken picture left the prompt";

  vision_.Set({.failure = {grpc::StatusCode::INTERNAL, "tower fell"}, .failures = 1});
  const Answer fallen = Ask(Question(session, "x", {FakePicture(2)}));
  EXPECT_EQ(fallen.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(fallen.status.error_message(), HasSubstr("vision service at"));

  vision_.Set({.hang_up = true});
  const Answer hung = Ask(Question(session, "x", {FakePicture(3)}));
  EXPECT_EQ(hung.status.error_code(), grpc::StatusCode::UNAVAILABLE);

  vision_.Set({.wrong_key = true});
  const Answer wrong = Ask(Question(session, "x", {FakePicture(4)}));
  EXPECT_EQ(wrong.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(wrong.status.error_message(), HasSubstr("another picture"));
  vision_.Set({});
  EXPECT_TRUE(Ask(Question(session, "x", {FakePicture(3), FakePicture(4)})).status.ok());
}

TEST_F(TurnFaultsTest, AServiceThatTakesNoFeaturesIsEjected) {
  StartGateway();
  const std::string session = NewSession();
  const std::string ejections = "llava_gateway_backend_ejections_total{backend=\"llm\"}";
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "no room left"}, .put_failures = 5});
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Metric(ejections), 0) << "after " << i << " failures";
    const Answer answer = Ask(Question(session, "x", {FakePicture(i)}));
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_THAT(answer.status.error_message(), HasSubstr("llm service at"));
  }
  EXPECT_EQ(Metric(ejections), 1);
  // There is no other: it is asked all the same, and an answer takes it in again.
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, AnswersThatMakeNoSenseAreRefused) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set({.wrong_offset = true});
  const Answer offset = Ask(Question(session, "x"));
  EXPECT_EQ(offset.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(offset.status.error_message(), HasSubstr("byte 1"));
  llm_.Set({.wrong_version = true});
  const Answer version = Ask(Question(session, "x"));
  EXPECT_EQ(version.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(version.status.error_message(), HasSubstr("version 99"));
  EXPECT_THAT(version.text, IsEmpty());
  llm_.Set({});
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, AServiceWhoseAnswersMakeNoSenseIsEjected) {
  FakeLlm other;
  options_.llm += "," + other.server().address();
  const std::string ejections = "llava_gateway_backend_ejections_total{backend=\"llm\"}";
  llm_.Set({.wrong_offset = true});
  StartGateway();
  ASSERT_TRUE(
      Eventually([&] { return Metric("llava_gateway_backends_down{backend=\"llm\"}") == 0; }));
  std::string session;  // whose home it is
  while (llm_.generates() == 0) Ask(Question(session = NewSession(), "x"));
  while (llm_.generates() < 5) {
    EXPECT_EQ(Metric(ejections), 0);
    EXPECT_EQ(Ask(Question(session, "x")).status.error_code(), grpc::StatusCode::INTERNAL);
  }
  EXPECT_EQ(Metric(ejections), 1);
  EXPECT_TRUE(Ask(Question(session, "x")).status.ok());
  EXPECT_EQ(llm_.generates(), 5);
  StopGateway();
}

TEST_F(TurnFaultsTest, ATowerWhoseFeaturesMakeNoSenseIsEjected) {
  StartGateway();
  const std::string session = NewSession();
  vision_.Set({.wrong_key = true});
  for (int i = 0; i < 5; ++i) Ask(Question(session, "x", {FakePicture(i)}));
  EXPECT_EQ(Metric("llava_gateway_backend_ejections_total{backend=\"vision\"}"), 1);
}

TEST_F(TurnFaultsTest, AVersionThatWentAwayIsReplacedBeforeTheFirstToken) {
  StartGateway();
  const std::string session = NewSession();
  llm_.models().Exchange({FakeLanguageModel("emoji", 2)});  // the gateway has not heard of it yet
  const Answer answer = Ask(Question(session, "x"));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.started.model().version(), 2U) << "told anew before the first text";
  EXPECT_EQ(answer.finished.model().version(), 2U);
  EXPECT_EQ(Turns(session)[0].model().version(), 2U);

  llm_.models().Set({FakeLanguageModel("emoji", 3)});
  v1::ChatRequest named = Question(session, "y");
  named.mutable_model()->set_version(2);
  EXPECT_EQ(Ask(named).status.error_code(), grpc::StatusCode::NOT_FOUND)
      << "a version that was asked for is never replaced";
}

TEST_F(TurnFaultsTest, OtherContentsUnderTheSameNumberAreAnotherVersion) {
  StartGateway();
  const std::string session = NewSession();
  v1::ModelInfo other = FakeLanguageModel("emoji", 1);
  other.mutable_model()->set_digest(std::string(32, 'z'));
  llm_.models().Set({other});  // the gateway has not heard of it yet
  const Answer answer = Ask(Question(session, "x"));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.started.model().digest(), other.model().digest());
  EXPECT_EQ(answer.finished.model().digest(), other.model().digest());

  // A begun answer is not gone on with by it.
  llm_.Set({.fail_after_deltas = 2, .deaths = 1, .pause_after = 1});
  const Answer broken = Ask(Question(session, "a b c"), [this](auto&, const Answer&) {
    llm_.models().Set({FakeLanguageModel("emoji", 1)});
    llm_.Set({});
    llm_.Release();
  });
  EXPECT_EQ(broken.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Turns(session)[1].finish_reason(), v1::FINISH_REASON_INTERRUPTED);
  EXPECT_EQ(Turns(session)[1].answer_text().substr(0, 3), "a b");
}

TEST_F(TurnFaultsTest, AWrongTowerIsToldAndNotReady) {
  vision_.models().Set({FakeTower('z')});
  StartGateway(/*wait=*/false);
  ASSERT_TRUE(
      Eventually([&] { return reason().find("needs the vision tower") != std::string::npos; }));
  const std::string session = NewSession();
  const Answer answer = Ask(Question(session, "x", {FakePicture(1)}));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("needs the vision tower 7474"));
  EXPECT_THAT(answer.status.error_message(), HasSubstr("tower 7a7a"));
}

TEST_F(TurnFaultsTest, TheClientsDeadlineCrossesTheHops) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const auto start = std::chrono::system_clock::now();
  const Answer answer =
      Ask(Question(session, std::string(400, 'a') + " b c d e f g h i j k l m n o p q r s t u v"),
          {}, kSlowdown * milliseconds(4000));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_LT(llm_.last_deadline() - start, kSlowdown * std::chrono::minutes(1))
      << "of ten that it may take without one";
  ASSERT_EQ(Turns(session).size(), 1U);
  ASSERT_TRUE(Eventually([&] { return Turns(session)[0].state() == v1::TURN_STATE_FAILED; }));
  EXPECT_EQ(Turns(session)[0].finish_reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_THAT(Turns(session)[0].answer_text(), Not(IsEmpty()));
  EXPECT_TRUE(Eventually([&] {
    return Metric("llava_gateway_request_duration_seconds_count{method=\"Chat\"}") == 1;
  }));
  EXPECT_EQ(Metric(kFaults), 0) << "which was the caller's to choose";
  llm_.Set({});
  ExpectUsable(session);
}

TEST_F(TurnFaultsTest, TheRequestTimeoutEndsATurn) {
  options_.request_timeout = kSlowdown * milliseconds(3000);
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = Ask(Question(session, "a b c d e f g h i j k l m n o p q r s t u v"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("--request-timeout"));
  EXPECT_EQ(Turns(session)[0].finish_reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_EQ(Turns(session)[0].answer_text(), answer.text);
  EXPECT_EQ(Metric(kLate), 1);
  EXPECT_EQ(Metric(kFaults), 1);
}

TEST_F(TurnFaultsTest, DeletingASessionStopsItsAnswer) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  Ask(Question(session, "a b c d e f g h i j k l", {FakePicture(1)}),
      [&](grpc::ClientContext&, const Answer&) {
        v1::DeleteSessionRequest request;
        request.set_session_id(session);
        v1::DeleteSessionResponse response;
        EXPECT_TRUE(stub_->DeleteSession(Context().get(), request, &response).ok());
      });
  EXPECT_TRUE(Eventually([&] { return llm_.cancelled() == 1; }));
  v1::GetSessionRequest get;
  get.set_session_id(session);
  v1::GetSessionResponse got;
  EXPECT_EQ(stub_->GetSession(Context().get(), get, &got).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(std::filesystem::is_empty(options_.data_dir + "/images"));
}

}  // namespace
}  // namespace llava
