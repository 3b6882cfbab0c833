// Versions that are away for a while: loaded anew beside others, or at a process that is down or
// about to end.

#include <gmock/gmock.h>

#include <future>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr char kQuestion[] = "a b c d";
constexpr char kAnswer[] = "a b c d! pictures: 0, turns: 1";
constexpr char kDown[] = "llava_gateway_backends_down{backend=\"llm\"}";

class VersionAwayTest : public GatewayTest {
 protected:
  // The service breaks the answer off after two words, right after `lost`.
  Answer AskAndLose(const v1::ChatRequest& question, const std::function<void()>& lost) {
    llm_.Set({.fail_after_deltas = 2, .deaths = 1, .pause_after = 1});
    return Ask(question, [&](auto&, const Answer&) {
      llm_.Set({});
      lost();
      llm_.Release();
    });
  }
};

TEST_F(VersionAwayTest, ABegunAnswerWaitsWhileItsVersionIsLoadedBesideAnother) {
  const v1::ModelInfo old = FakeLanguageModel("emoji", 1), latest = FakeLanguageModel("emoji", 2);
  llm_.models().Set({old, latest});
  StartGateway();
  const std::string session = NewSession();
  auto asking = std::async(std::launch::async, [&] {
    return AskAndLose(Question(session, kQuestion), [&] { llm_.models().Set({old}, {latest}); });
  });
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_worker_deaths_total") == 1; }));
  EXPECT_EQ(asking.wait_for(milliseconds(700)), std::future_status::timeout);
  llm_.models().Set({old, latest});
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(answer.finished.model().version(), 2U);
}

// The gateway believes the version there whenever it asks for the rest.
TEST_F(VersionAwayTest, ABegunAnswerWaitsAlsoWhenTheServiceSaysSoItself) {
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = AskAndLose(Question(session, kQuestion), [this] {
    llm_.Set({.failure = {grpc::StatusCode::FAILED_PRECONDITION, "version is not served here"},
              .failures = 4});
  });
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(llm_.generates(), 6);
}

TEST_F(VersionAwayTest, AVersionThatIsGoneEndsTheAnswerAtOnce) {
  options_.continue_timeout = std::chrono::hours(1);
  llm_.models().Set({FakeLanguageModel("emoji", 1), FakeLanguageModel("emoji", 2)});
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = AskAndLose(Question(session, kQuestion),
                                   [this] { llm_.models().Set({FakeLanguageModel("emoji", 1)}); });
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Turns(session).at(0).finish_reason(), v1::FINISH_REASON_INTERRUPTED);
}

TEST_F(VersionAwayTest, AVersionThatStaysAwayEndsTheAnswerWhenPatienceEnds) {
  options_.continue_timeout = milliseconds(700);
  const v1::ModelInfo old = FakeLanguageModel("emoji", 1), latest = FakeLanguageModel("emoji", 2);
  llm_.models().Set({old, latest});
  StartGateway();
  const std::string session = NewSession();
  const auto begin = std::chrono::steady_clock::now();
  const Answer answer =
      AskAndLose(Question(session, kQuestion), [&] { llm_.models().Set({old}, {latest}); });
  EXPECT_GE(std::chrono::steady_clock::now() - begin, milliseconds(700));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Turns(session).at(0).finish_reason(), v1::FINISH_REASON_INTERRUPTED);
  EXPECT_EQ(Turns(session).at(0).answer_text(), answer.text);
}

TEST_F(VersionAwayTest, TheModelOfAProcessThatIsDownIsUnavailableNotUnknown) {
  FakeLlm other;
  other.models().Set({FakeLanguageModel("other", 7)});
  options_.llm = absl::StrCat(llm_.server().address(), ",", other.server().address());
  options_.default_model = "emoji";
  llm_.Set({.pause_after = 1});
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 0; }));
  const std::string session = NewSession();
  std::promise<void> stopped;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(Question(session, kQuestion), [&](grpc::ClientContext&, const Answer&) {
      llm_.server().Stop();
      llm_.Set({});
      stopped.set_value();
    });
  });
  stopped.get_future().wait();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 1; }));
  for (const char* model : {"emoji", "emoji@1"}) {
    v1::ChatRequest named = Question(NewSession(), "x");
    named.mutable_model()->set_name(model);
    const Answer refused = Ask(named);
    EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE) << model;
    EXPECT_THAT(refused.status.error_message(), HasSubstr("llm service at ")) << model;
  }
  v1::ChatRequest unknown = Question(NewSession(), "x");
  unknown.mutable_model()->set_name("emoji@2");
  EXPECT_EQ(Ask(unknown).status.error_code(), grpc::StatusCode::NOT_FOUND);
  llm_.server().Start();
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  StopGateway();
}

TEST_F(VersionAwayTest, AVersionThatIsBeingLoadedIsUnavailableNotUnknown) {
  const v1::ModelInfo old = FakeLanguageModel("emoji", 1), latest = FakeLanguageModel("emoji", 2);
  llm_.models().Set({old}, {latest});
  StartGateway();
  v1::ChatRequest question = Question(NewSession(), "x");
  EXPECT_EQ(Ask(question).started.model().version(), 1U) << "who names none gets what is served";
  question.mutable_model()->set_version(2);
  const Answer refused = Ask(question);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("is loading emoji 2; try again"));
  question.mutable_model()->set_version(3);
  EXPECT_EQ(Ask(question).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

// Sessions keep the model that they began with.
TEST_F(VersionAwayTest, TheDefaultIsNoOtherModelWhileItIsLoadedAnew) {
  const v1::ModelInfo a = FakeLanguageModel("a", 1), b = FakeLanguageModel("b", 1),
                      later = FakeLanguageModel("0", 1);
  const auto model_of_a_new_session = [this] {
    v1::GetSessionRequest get;
    get.set_session_id(NewSession());
    v1::GetSessionResponse response;
    EXPECT_TRUE(stub_->GetSession(Context().get(), get, &response).ok());
    return response.session().model();
  };
  const auto lists = [this](size_t models) {
    return Eventually([&] {
      v1::ChatServiceListModelsResponse response;
      stub_->ListModels(Context().get(), {}, &response);
      return static_cast<size_t>(response.models_size()) == models;
    });
  };
  llm_.models().Set({b}, {a});
  InitLogging({"test", "info", "text"});
  testing::internal::CaptureStderr();
  StartGateway(/*wait=*/false);
  ASSERT_TRUE(lists(1));
  EXPECT_EQ(model_of_a_new_session(), "a");
  EXPECT_EQ(Ask(Question(NewSession(), "x")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  AwaitReady(true);
  llm_.models().Set({a, b}, {later});
  ASSERT_TRUE(lists(2));
  EXPECT_EQ(model_of_a_new_session(), "a");
  EXPECT_TRUE(Ask(Question(NewSession(), "x")).status.ok());
  llm_.models().Set({later, a, b});
  ASSERT_TRUE(lists(3));
  EXPECT_EQ(model_of_a_new_session(), "a") << "as long as it is there";
  llm_.models().Set({later, b});
  ASSERT_TRUE(lists(2));
  EXPECT_EQ(model_of_a_new_session(), "0");
  StopGateway();
  const std::string log = testing::internal::GetCapturedStderr();
  const auto warning = log.find("several models and no --default-model");
  ASSERT_NE(warning, log.npos) << log;
  EXPECT_EQ(log.find("several models", warning + 1), log.npos) << "once";
}

TEST_F(VersionAwayTest, WhyItIsNotReadyChangesWithWhatIsToBeLoaded) {
  llm_.models().Set({}, {FakeLanguageModel("a", 1)});
  StartGateway(/*wait=*/false);
  const auto told = [this](const char* why) {
    return Eventually([&] { return absl::StrContains(reason(), why); });
  };
  EXPECT_TRUE(told("is loading a 1")) << reason();
  llm_.models().Set({});
  EXPECT_TRUE(told("serves no model")) << reason();
}

TEST_F(VersionAwayTest, WhatAProcessWasLoadingIsUnavailableWhileItIsDown) {
  FakeLlm other;
  other.models().Set({FakeLanguageModel("other", 7)}, {FakeLanguageModel("emoji", 2)});
  options_.llm = absl::StrCat(llm_.server().address(), ",", other.server().address());
  options_.default_model = "emoji";
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 0; }));
  v1::ChatRequest question = Question(NewSession(), "x");
  question.mutable_model()->set_version(2);
  EXPECT_EQ(Ask(question).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  other.server().Stop();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 1; }));
  const Answer refused = Ask(question);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("llm service at "));
  StopGateway();
}

// Its models are not known to a gateway that begins while it is down.
TEST_F(VersionAwayTest, AProcessThatHasNeverAnsweredMayHaveTheModel) {
  FakeLlm other;
  other.models().Set({FakeLanguageModel("other", 7)});
  other.Set({.pause_after = 1});
  options_.llm = absl::StrCat(llm_.server().address(), ",", other.server().address());
  options_.default_model = "emoji";
  options_.continue_timeout = std::chrono::hours(1);
  StartGateway();
  const std::string session = NewSession();
  v1::ChatRequest question = Question(session, kQuestion);
  question.mutable_model()->set_name("other");
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 0; }));
  std::promise<void> begun;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(question, [&](grpc::ClientContext&, const Answer&) { begun.set_value(); });
  });
  begun.get_future().wait();
  StopGateway();
  const Answer left = asking.get();
  other.server().Stop();
  other.Set({});
  StartGateway(/*wait=*/false);
  ASSERT_TRUE(Eventually([&] { return Ask(Question(NewSession(), "x")).status.ok(); }));
  for (const char* model : {"other", "other@7", "emoji@2"}) {
    v1::ChatRequest named = Question(NewSession(), "x");
    named.mutable_model()->set_name(model);
    const Answer refused = Ask(named);
    EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE) << model;
    EXPECT_THAT(refused.status.error_message(), HasSubstr(other.server().address())) << model;
  }
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_RUNNING);
  other.server().Start();
  const Answer rest = Resume(session, left.started.turn_id(), left.text.size(), 0);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(left.text + rest.text, kAnswer);
  StopGateway();
}

TEST_F(VersionAwayTest, AnAddressThatNeverAnswersMakesNoModelPossibleForLong) {
  FakeLlm other;
  other.server().Stop();
  options_.llm = absl::StrCat(llm_.server().address(), ",", other.server().address());
  options_.continue_timeout = milliseconds(500);
  StartGateway();
  v1::ChatRequest question = Question(NewSession(), "x");
  question.mutable_model()->set_name("other");
  EXPECT_TRUE(
      Eventually([&] { return Ask(question).status.error_code() == grpc::StatusCode::NOT_FOUND; }));
}

TEST_F(VersionAwayTest, AMissingTowerIsNotAMissingVersion) {
  options_.continue_timeout = milliseconds(700);
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = AskAndLose(Question(session, kQuestion, {FakePicture(1)}), [this] {
    vision_.models().Set({FakeTower('x')});
    AwaitReady(false);  // the gateway has heard of it
  });
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("needs the vision tower"));
}

// As it says while it drains; what it did before may end well meanwhile.
TEST_F(VersionAwayTest, APictureThatAVisionServiceRefusesGoesToAnother) {
  FakeVision other;
  options_.vision = absl::StrCat(vision_.server().address(), ",", other.server().address());
  StartGateway();
  ASSERT_TRUE(
      Eventually([&] { return Metric("llava_gateway_backends_down{backend=\"vision\"}") == 0; }));
  vision_.Set({.failure = ToGrpc(OverloadedError("vision: draining", milliseconds(500))),
               .failures = 1'000'000});
  // Until it was the turn of that one.
  for (int seed = 0; vision_.encodes() == 0 && seed < 100; ++seed) {
    const Answer answer = Ask(Question(NewSession(), "x", {FakePicture(seed)}));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  }
  EXPECT_EQ(vision_.encodes(), 1);
  StopGateway();
}

// As a service says that has no room for features: another tower would not help.
TEST_F(VersionAwayTest, APictureThatALanguageServiceRefusesStaysWithItsVisionService) {
  FakeVision other;
  options_.vision = absl::StrCat(vision_.server().address(), ",", other.server().address());
  StartGateway();
  ASSERT_TRUE(
      Eventually([&] { return Metric("llava_gateway_backends_down{backend=\"vision\"}") == 0; }));
  llm_.Set({.failure = ToGrpc(OverloadedError("the feature store is full", milliseconds(100))),
            .put_failures = 1});
  const Answer answer = Ask(Question(NewSession(), "x", {FakePicture(1)}));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(llm_.puts(), 2);
  EXPECT_EQ(vision_.encodes() * other.encodes(), 0) << "one has them";
  EXPECT_EQ(vision_.encodes() + other.encodes(), 2);
  StopGateway();
}

// The version that was chosen goes before the first text, and is to come back.
TEST_F(VersionAwayTest, AQuestionThatNamesNoVersionDoesNotWaitForTheOneThatWasChosen) {
  const v1::ModelInfo old = FakeLanguageModel("emoji", 1), latest = FakeLanguageModel("emoji", 2);
  llm_.models().Set({old, latest});
  StartGateway();
  llm_.models().Exchange({old}, {latest});  // the gateway has not heard of it yet
  const Answer answer = Ask(Question(NewSession(), kQuestion));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.finished.model().version(), 1U);
}

// Nobody is sent to the version that is down while another one serves.
TEST_F(VersionAwayTest, AQuestionThatNamesNoVersionGoesToOneThatIsServed) {
  FakeLlm newer;
  newer.models().Set({FakeLanguageModel("emoji", 2)});
  options_.llm = absl::StrCat(llm_.server().address(), ",", newer.server().address());
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 0; }));
  const std::string session = NewSession();
  EXPECT_EQ(Ask(Question(session, "x")).started.model().version(), 2U);
  newer.server().Stop();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 1; }));
  EXPECT_EQ(Ask(Question(session, "x")).started.model().version(), 1U);
  StopGateway();
}

// The first version is gone before the first token; the one that answers has defaults of its own.
TEST_F(VersionAwayTest, TheVersionThatAnswersBringsItsDefaults) {
  v1::ModelInfo first = FakeLanguageModel("emoji", 1), second = FakeLanguageModel("emoji", 2);
  first.mutable_default_sampling()->set_max_new_tokens(11);
  first.mutable_default_sampling()->set_top_k(3);
  second.mutable_default_sampling()->set_max_new_tokens(22);
  llm_.models().Set({first});
  StartGateway();
  v1::ChatRequest question = Question(NewSession(), kQuestion);
  question.mutable_sampling()->set_temperature(0.5F);
  llm_.models().Exchange({second});  // the gateway has not heard of it yet
  const Answer answer = Ask(question);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.finished.model().version(), 2U);
  const v1::SamplingParams used = llm_.last_request().sampling();
  EXPECT_EQ(used.max_new_tokens(), 22U);
  EXPECT_FALSE(used.has_top_k());
  EXPECT_EQ(used.temperature(), 0.5F);
  EXPECT_EQ(used.seed(), answer.started.seed());
}

// The gateway learns only from the question what a process has lost that began anew.
TEST_F(VersionAwayTest, PicturesAreBroughtAgainToAProcessThatLostThemTwice) {
  StartGateway();
  const std::string session = NewSession();
  ASSERT_TRUE(Ask(Question(session, "x", {FakePicture(1)})).status.ok());
  llm_.ForgetFeatures();
  vision_.Set({.pause = true});
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, "y")); });
  ASSERT_TRUE(Eventually([&] { return vision_.encodes() == 2; })) << "they are missing";
  llm_.Set({.failures = 1'000'000});
  vision_.Set({});
  vision_.Release();
  ASSERT_TRUE(Eventually([&] { return llm_.generates() >= 3; })) << "and were brought";
  llm_.ForgetFeatures();
  llm_.Set({});
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "y! pictures: 1, turns: 2");
  EXPECT_EQ(vision_.encodes(), 3);
}

TEST_F(VersionAwayTest, AQuestionWaitsForAnotherVersionNoLongerThanItsTime) {
  options_.request_timeout = kSlowdown * milliseconds(1500);
  options_.continue_timeout = kSlowdown * milliseconds(15'000);
  StartGateway();
  llm_.models().Exchange({});  // the gateway has not heard of it yet
  const Answer answer = Ask(Question(NewSession(), kQuestion));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED)
      << answer.status.error_message();
  EXPECT_FALSE(answer.started.turn_id().empty()) << "it is recorded";
}

TEST_F(VersionAwayTest, AConstraintWaitsForTheProcessThatObeysIt) {
  FakeLlm newer;
  v1::ModelInfo older = FakeLanguageModel("emoji", 1);
  older.clear_constrains_output();
  llm_.models().Set({older});
  options_.llm = absl::StrCat(llm_.server().address(), ",", newer.server().address());
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 0; }));
  newer.server().Stop();
  ASSERT_TRUE(Eventually([&] { return Metric(kDown) == 1; }));
  v1::ChatRequest question = Question(NewSession(), kQuestion);
  question.mutable_sampling()->mutable_constraint()->mutable_json_object();
  auto asking = std::async(std::launch::async, [&] { return Ask(question); });
  EXPECT_EQ(asking.wait_for(milliseconds(500)), std::future_status::timeout);
  newer.server().Start();
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(newer.generates(), 1);
  StopGateway();
}

}  // namespace
}  // namespace llava
