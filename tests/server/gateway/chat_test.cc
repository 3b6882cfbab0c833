// Conversations that go well.

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class ChatTest : public GatewayTest {};

TEST_F(ChatTest, TwoTurnsAboutAPicture) {
  StartGateway();
  const std::string session = NewSession();
  const Answer first = Ask(Question(session, "what is this", {FakePicture(1)}));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(first.text, "what is this! pictures: 1, turns: 1");
  EXPECT_TRUE(first.offsets_fit);
  EXPECT_EQ(first.deltas, 7);
  EXPECT_EQ(first.started.session_id(), session);
  EXPECT_EQ(first.started.turn_number(), 1U);
  EXPECT_EQ(first.started.model().name(), "emoji");
  EXPECT_EQ(first.started.model().version(), 1U);
  ASSERT_TRUE(first.is_finished);
  EXPECT_EQ(first.finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(first.finished.text_bytes(), first.text.size());
  EXPECT_EQ(first.finished.usage().image_tokens(), 4U);
  EXPECT_EQ(first.finished.usage().generated_tokens(), 7U);
  const v1::Timings& timings = first.finished.timings();
  EXPECT_GT(timings.vision_seconds(), 0);
  EXPECT_EQ(timings.prefill_seconds(), 0.25);
  EXPECT_GE(timings.time_to_first_token_seconds(), timings.vision_seconds());
  EXPECT_GE(timings.total_seconds(), timings.time_to_first_token_seconds());

  const Answer second = Ask(Question(session, "and now"));
  ASSERT_TRUE(second.status.ok()) << second.status.error_message();
  EXPECT_EQ(second.text, "and now! pictures: 1, turns: 2");
  EXPECT_EQ(second.started.turn_number(), 2U);
  EXPECT_EQ(vision_.encodes(), 1) << "the features were believed to be there";
  EXPECT_EQ(second.finished.timings().vision_seconds(), 0);

  // The answer goes back with its opaque ids, as they came.
  const v1::GenerateRequest sent = llm_.last_request();
  ASSERT_EQ(sent.messages_size(), 3);
  EXPECT_EQ(sent.messages(1).role(), v1::ROLE_ASSISTANT);
  EXPECT_EQ(sent.messages(1).text(), first.text);
  EXPECT_EQ(sent.messages(1).tokens().ids_size(), 7);
  EXPECT_EQ(sent.messages(1).tokens().tokenizer_digest(), std::string(32, 'k'));
  EXPECT_EQ(sent.messages(0).images(0).image_sha256(), ToBytes(HashBytes(FakePicture(1))));
  EXPECT_EQ(sent.messages(0).images(0).numerics(), "cpu-f32");
  EXPECT_EQ(sent.session_id(), session);
  EXPECT_EQ(sent.model().version(), 1U);
}

// A large tensor must not hold up answers.
TEST_F(ChatTest, FeaturesComeOverAConnectionOfTheirOwn) {
  StartGateway();
  ASSERT_TRUE(Ask(Question(NewSession(), "look", {FakePicture(1)})).status.ok());
  EXPECT_EQ(llm_.puts(), 1);
  EXPECT_TRUE(llm_.puts_apart());
}

TEST_F(ChatTest, SurvivesARestart) {
  StartGateway();
  const std::string session = NewSession();
  const Answer first = Ask(Question(session, "look", {FakePicture(1), FakePicture(2)}));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  StopGateway();
  StartGateway();
  const auto turns = Turns(session);
  ASSERT_EQ(turns.size(), 1U);
  EXPECT_EQ(turns[0].id(), first.started.turn_id());
  EXPECT_EQ(turns[0].state(), v1::TURN_STATE_FINISHED);
  EXPECT_EQ(turns[0].user_text(), "look");
  EXPECT_EQ(turns[0].answer_text(), first.text);
  EXPECT_EQ(turns[0].seed(), first.started.seed());
  EXPECT_EQ(turns[0].usage().generated_tokens(), 5U);
  ASSERT_EQ(turns[0].images_size(), 2);
  EXPECT_EQ(turns[0].images(0).id(), ToHex(HashBytes(FakePicture(1))));
  EXPECT_EQ(turns[0].images(1).format(), "bmp");
  EXPECT_EQ(turns[0].images(1).width(), 3U);

  llm_.ForgetFeatures();
  const Answer second = Ask(Question(session, "again"));
  ASSERT_TRUE(second.status.ok()) << second.status.error_message();
  EXPECT_EQ(second.text, "again! pictures: 2, turns: 2");
  EXPECT_EQ(llm_.last_request().messages(1).tokens().ids_size(), 5);
}

TEST_F(ChatTest, SettingsOfSessionAndRequestMeet) {
  StartGateway();
  v1::CreateSessionRequest create;
  create.set_model("emoji");
  create.set_system_prompt("be brief");
  create.mutable_sampling()->set_temperature(0.5F);
  create.mutable_sampling()->set_top_p(0.9F);
  const std::string session = NewSession(create);
  v1::ChatRequest question = Question(session, "hello");
  question.mutable_sampling()->set_temperature(0);
  question.mutable_sampling()->set_seed(42);
  question.mutable_sampling()->set_logprobs(0);
  question.set_priority(3);
  const Answer answer = Ask(question);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.started.seed(), 42U);
  EXPECT_EQ(answer.logprobs, answer.deltas);
  const v1::GenerateRequest sent = llm_.last_request();
  EXPECT_EQ(sent.messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(sent.messages(0).text(), "be brief");
  EXPECT_EQ(sent.sampling().temperature(), 0);
  EXPECT_FLOAT_EQ(sent.sampling().top_p(), 0.9F);
  EXPECT_EQ(sent.sampling().seed(), 42U);
  EXPECT_EQ(sent.priority(), 3);
}

TEST_F(ChatTest, AConstraintOfTheSessionHoldsUnlessTheQuestionHasItsOwn) {
  StartGateway();
  v1::CreateSessionRequest create;
  create.mutable_sampling()->mutable_constraint()->mutable_json_object();
  const std::string session = NewSession(create);
  ASSERT_TRUE(Ask(Question(session, "a")).status.ok());
  EXPECT_TRUE(llm_.last_request().sampling().constraint().has_json_object());
  v1::ChatRequest question = Question(session, "b");
  question.mutable_sampling()->mutable_constraint()->set_json_schema(R"({"type":"null"})");
  ASSERT_TRUE(Ask(question).status.ok());
  EXPECT_EQ(llm_.last_request().sampling().constraint().json_schema(), R"({"type":"null"})");
  question.mutable_sampling()->mutable_constraint()->mutable_text();
  ASSERT_TRUE(Ask(question).status.ok());
  EXPECT_TRUE(llm_.last_request().sampling().constraint().has_text());
}

// While services are updated, some of them do not know constraints yet.
TEST_F(ChatTest, AConstraintIsForServicesThatObeyIt) {
  FakeLlm newer;
  v1::ModelInfo older = FakeLanguageModel("emoji", 1);
  older.clear_constrains_output();
  llm_.models().Set({older});
  options_.llm = absl::StrCat(llm_.server().address(), ",", newer.server().address());
  StartGateway();
  ASSERT_TRUE(
      Eventually([&] { return Metric("llava_gateway_backends_down{backend=\"llm\"}") == 0; }));
  for (int i = 0; i < 30; ++i) {
    const std::string session = NewSession();
    v1::ChatRequest question = Question(session, "a");
    question.mutable_sampling()->mutable_constraint()->mutable_json_object();
    const int before = llm_.generates();
    const Answer answer = Ask(question);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(llm_.generates(), before);
    EXPECT_TRUE(Ask(Question(session, "b")).status.ok());
  }
  EXPECT_GT(llm_.generates(), 0) << "it answers what it can";
  StopGateway();
}

TEST_F(ChatTest, DrawsASeedOfItsOwn) {
  StartGateway();
  const std::string session = NewSession();
  const Answer first = Ask(Question(session, "a"));
  EXPECT_EQ(llm_.last_request().sampling().seed(), first.started.seed());
  const Answer second = Ask(Question(session, "b"));
  EXPECT_NE(first.started.seed(), second.started.seed());
}

TEST_F(ChatTest, NewestVersionAnswersUnlessOneIsNamed) {
  llm_.models().Set({FakeLanguageModel("emoji", 1), FakeLanguageModel("emoji", 3),
                     FakeLanguageModel("emoji", 4, 'x'), FakeLanguageModel("other", 7)});
  StartGateway();
  const std::string session = NewSession();
  // Version 4 wants a tower that nobody has.
  EXPECT_EQ(Ask(Question(session, "a")).started.model().version(), 3U);
  v1::ChatRequest named = Question(session, "b");
  named.mutable_model()->set_name("emoji");
  named.mutable_model()->set_version(1);
  const Answer answer = Ask(named);
  EXPECT_EQ(answer.finished.model().version(), 1U);
  EXPECT_EQ(Turns(session)[1].model().version(), 1U);
  EXPECT_EQ(Turns(session)[1].model().digest(), std::string(32, '1'));
  named.mutable_model()->set_name("other");
  named.mutable_model()->clear_version();
  EXPECT_EQ(Ask(named).started.model().version(), 7U);
}

TEST_F(ChatTest, AnswersWithoutASession) {
  StartGateway();
  v1::ChatRequest request;
  auto* message = request.add_messages();
  message->set_role(v1::ROLE_SYSTEM);
  message->set_text("be kind");
  message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_text("what is it");
  message->add_images()->set_data(FakePicture(5));
  message = request.add_messages();
  message->set_role(v1::ROLE_ASSISTANT);
  message->set_text("a cat");
  message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_text("sure");
  const Answer answer = Ask(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "sure! pictures: 1, turns: 2");
  EXPECT_EQ(answer.started.session_id(), "");
  EXPECT_TRUE(answer.is_finished);
  v1::ListSessionsResponse sessions;
  ASSERT_TRUE(stub_->ListSessions(Context().get(), {}, &sessions).ok());
  EXPECT_THAT(sessions.sessions(), IsEmpty());
  EXPECT_TRUE(std::filesystem::is_empty(options_.data_dir + "/images"));
}

TEST_F(ChatTest, RegeneratesTheLastTurnOnly) {
  StartGateway();
  const std::string session = NewSession();
  const Answer first = Ask(Question(session, "one", {FakePicture(1)}));
  const Answer second = Ask(Question(session, "two"));
  v1::RegenerateTurnRequest request;
  request.set_session_id(session);
  request.set_turn_id(second.started.turn_id());
  request.mutable_sampling()->set_seed(7);
  auto context = Context();
  auto reader = stub_->RegenerateTurn(context.get(), request);
  v1::RegenerateTurnResponse response;
  std::string text;
  v1::TurnStarted started;
  while (reader->Read(&response)) {
    if (response.event().has_turn_started()) started = response.event().turn_started();
    text += response.event().text().text();
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "two! pictures: 1, turns: 2");
  const auto turns = Turns(session);
  ASSERT_EQ(turns.size(), 2U);
  EXPECT_EQ(turns[1].id(), second.started.turn_id());
  EXPECT_EQ(turns[1].seed(), 7U);
  EXPECT_EQ(turns[1].answer_text(), text);

  // Who has the begin of the first answer is not given the end of the second one.
  const Answer ahead = Resume(session, second.started.turn_id(), 2, second.started.restarts());
  EXPECT_EQ(ahead.status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(ahead.status.error_message(), HasSubstr("asked anew (RegenerateTurn)"));
  EXPECT_TRUE(ahead.text.empty());
  EXPECT_EQ(started.restarts(), second.started.restarts() + 1);
  EXPECT_EQ(Resume(session, second.started.turn_id(), 2, started.restarts()).text, text.substr(2));

  request.set_turn_id(first.started.turn_id());
  context = Context();
  reader = stub_->RegenerateTurn(context.get(), request);
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("last turn"));
  EXPECT_EQ(Turns(session)[0].answer_text(), first.text);
}

TEST_F(ChatTest, CountsTokensOfTheNextPrompt) {
  StartGateway();
  const std::string session = NewSession();
  Ask(Question(session, "one two", {FakePicture(1)}));
  v1::ChatServiceCountTokensRequest request;
  request.set_session_id(session);
  request.set_text("three four");
  request.add_images()->set_data(FakePicture(2));
  v1::ChatServiceCountTokensResponse counts;
  const auto status = stub_->CountTokens(Context().get(), request, &counts);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(counts.text_tokens(), 2U + 6U + 2U);  // question, answer, question
  EXPECT_EQ(counts.image_tokens(), 8U);
  EXPECT_EQ(counts.context_tokens(), 4096U);
  EXPECT_EQ(vision_.encodes(), 1) << "counting needs no features";
  // As in Chat a picture that comes with the message may be named in it.
  request.add_images()->set_id(ToHex(HashBytes(FakePicture(2))));
  EXPECT_TRUE(stub_->CountTokens(Context().get(), request, &counts).ok());
  EXPECT_EQ(counts.image_tokens(), 12U);
  request.mutable_images(1)->set_id(std::string(64, 'a'));
  const auto unknown = stub_->CountTokens(Context().get(), request, &counts);
  EXPECT_EQ(unknown.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(unknown.error_message(), HasSubstr("images[1]"));
}

// A model of the anyres mode has to know the sizes of the pictures: they come with the features.
TEST_F(ChatTest, CountsTokensWhereFeaturesTellThem) {
  FakeLlm::Behaviour behaviour;
  behaviour.count_by_features = true;
  llm_.Set(behaviour);
  StartGateway();
  const std::string session = NewSession();
  v1::ChatServiceCountTokensRequest request;
  request.set_session_id(session);
  request.set_text("three four");
  request.add_images()->set_data(FakePicture(2, 7, 5));
  v1::ChatServiceCountTokensResponse counts;
  auto status = stub_->CountTokens(Context().get(), request, &counts);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(counts.image_tokens(), 4U);
  EXPECT_EQ(vision_.encodes(), 1);
  EXPECT_EQ(llm_.last_put().image_width(), 7U);
  EXPECT_EQ(llm_.last_put().image_height(), 5U);
  // The question about the same picture finds its features there.
  Ask(Question(session, "three four", {FakePicture(2, 7, 5)}));
  EXPECT_EQ(vision_.encodes(), 1);
  EXPECT_EQ(llm_.puts(), 1);

  // Who forgets what was just brought is asked no third time.
  behaviour.forget_features = true;
  llm_.Set(behaviour);
  status = stub_->CountTokens(Context().get(), request, &counts);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("did not keep the features"));
}

TEST_F(ChatTest, DropsOldTurnsWhereFeaturesTellTheirTokens) {
  FakeLlm::Behaviour behaviour;
  behaviour.count_by_features = true;
  llm_.Set(behaviour);
  StartGateway();
  v1::CreateSessionRequest create;
  create.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  v1::CreateSessionResponse created;
  ASSERT_TRUE(stub_->CreateSession(Context().get(), create, &created).ok());
  const auto answer = Ask(Question(created.session().id(), "what is it", {FakePicture(3)}));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(llm_.puts(), 1) << "brought for the counting";
  EXPECT_THAT(answer.text, HasSubstr("pictures: 1"));
}

TEST_F(ChatTest, ListsModels) {
  StartGateway();
  v1::ChatServiceListModelsResponse models;
  ASSERT_TRUE(stub_->ListModels(Context().get(), {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).model().name(), "emoji");
  EXPECT_EQ(models.default_model(), "emoji");

  v1::ListModelsResponse all;
  ASSERT_TRUE(models_->ListModels(Context().get(), {}, &all).ok());
  EXPECT_EQ(all.models_size(), 2);
  v1::GetModelStatusRequest ask;
  ask.mutable_model()->set_name("tower");
  v1::GetModelStatusResponse state;
  ASSERT_TRUE(models_->GetModelStatus(Context().get(), ask, &state).ok());
  ASSERT_EQ(state.versions_size(), 1);
  EXPECT_EQ(state.versions(0).state(), v1::MODEL_STATE_READY);
  ask.mutable_model()->set_name("nobody");
  EXPECT_EQ(models_->GetModelStatus(Context().get(), ask, &state).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(state.versions(0).process(), "vision " + vision_.server().address());
  EXPECT_EQ(all.models(0).processes(0), "vision " + vision_.server().address());
}

}  // namespace
}  // namespace llava
