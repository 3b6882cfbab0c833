// Requests that must be refused: each with its status, a message that helps, and a session that
// goes on afterwards.

#include <gmock/gmock.h>

#include <limits>

#include "llava/v1/rollout.grpc.pb.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;

constexpr auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
constexpr auto kNotFound = grpc::StatusCode::NOT_FOUND;
constexpr auto kUnimplemented = grpc::StatusCode::UNIMPLEMENTED;

class BadInputTest : public GatewayTest {
 protected:
  void ExpectRefused(const v1::ChatRequest& request, grpc::StatusCode code,
                     const std::string& part) {
    const Answer answer = Ask(request);
    EXPECT_EQ(answer.status.error_code(), code)
        << request.ShortDebugString() << ": " << answer.status.error_message();
    EXPECT_THAT(answer.status.error_message(), HasSubstr(part));
    EXPECT_FALSE(answer.is_finished);
    EXPECT_EQ(answer.started.turn_id(), "");
  }
};

TEST_F(BadInputTest, QuestionsThatCannotBeAnswered) {
  options_.max_images_per_turn = 2;
  options_.max_turn_bytes = 10'000;
  options_.max_image_bytes = 5'000;
  options_.max_image_pixels = 100;
  StartGateway();
  const std::string session = NewSession();
  const auto question = [&](const std::string& text,
                            const std::vector<std::string>& pictures = {}) {
    return Question(session, text, pictures);
  };

  ExpectRefused(Question("", "hello"), kInvalid, "session_id is empty");
  ExpectRefused(Question("nobody", "hello"), kNotFound, "CreateSession");
  ExpectRefused(Question(std::string(500, 'x'), "hello"), kInvalid, "session_id has 500 bytes");
  ExpectRefused(question(""), kInvalid, "text is empty");
  ExpectRefused(question(" \n\t"), kInvalid, "text is empty");
  ExpectRefused(question(std::string(10'001, 'x')), kInvalid, "allowed are 10000");

  ExpectRefused(question("x", {"GIF89a......"}), kInvalid, "images[0]: the file is a GIF");
  ExpectRefused(question("x", {FakePicture(1), ""}), kInvalid, "images[1]");
  ExpectRefused(question("x", {FakePicture(1).substr(0, 20)}), kInvalid, "images[0]");
  ExpectRefused(question("x", {FakePicture(1, 30, 50)}), kInvalid, "pixels");
  ExpectRefused(question("x", {FakePicture(1, 45, 40)}), kInvalid, "5000");
  ExpectRefused(question("x", {FakePicture(1), FakePicture(2), FakePicture(3)}), kInvalid,
                "allowed in one message are 2");
  v1::ChatRequest request = question("x");
  request.add_images();
  ExpectRefused(request, kInvalid, "neither id nor data nor url");
  request.mutable_images(0)->set_id("../../etc/passwd");
  ExpectRefused(request, kInvalid, "not one of UploadImage");
  request.mutable_images(0)->set_id(std::string(64, 'a'));
  ExpectRefused(request, kNotFound, "send it again");
  request.mutable_images(0)->set_url("http://example.com/cat.png");
  ExpectRefused(request, kUnimplemented, "url");

  request = question("x");
  request.mutable_model()->set_name("gpt");
  ExpectRefused(request, kNotFound, "no model \"gpt\"; known are: emoji");
  request.mutable_model()->set_name("emoji");
  request.mutable_model()->set_version(9);
  ExpectRefused(request, kNotFound, "has no version 9; it has: 1");

  request = question("x");
  request.set_model_label("canary");
  ExpectRefused(request, kNotFound, "no version labelled \"canary\"; it has: 1");
  request.mutable_model()->set_version(1);
  ExpectRefused(request, kInvalid, "set one of them");
  request = question("x");
  request.mutable_model()->set_name("emoji@");
  ExpectRefused(request, kInvalid, "names nothing behind the @");
  request = question("x");
  request.set_adapter_id("lora");
  ExpectRefused(request, kUnimplemented, "adapter_id");
  request = question("x");
  request.set_idempotency_key(std::string(129, 'k'));
  ExpectRefused(request, kInvalid, "idempotency_key has 129 bytes");
  request = question("x");
  request.set_on_disconnect(static_cast<v1::OnDisconnect>(77));
  ExpectRefused(request, kInvalid, "77");

  EXPECT_EQ(llm_.generates(), 0) << "none of these may reach the services";
  EXPECT_TRUE(Turns(session).empty());
  request = question("x", {FakePicture(1)});
  request.set_on_disconnect(v1::ON_DISCONNECT_CANCEL);
  EXPECT_TRUE(Ask(request).status.ok());
  EXPECT_TRUE(
      Eventually([&] { return Metric("llava_gateway_images_total{result=\"refused\"}") == 9; }));
}

TEST_F(BadInputTest, SamplingOutOfRange) {
  StartGateway();
  const std::string session = NewSession();
  const auto refused = [&](const std::function<void(v1::SamplingParams&)>& set,
                           const std::string& field) {
    v1::ChatRequest request = Question(session, "x");
    set(*request.mutable_sampling());
    ExpectRefused(request, kInvalid, field);
  };
  refused([](auto& p) { p.set_temperature(2.5F); }, "temperature");
  refused([](auto& p) { p.set_temperature(std::numeric_limits<float>::quiet_NaN()); },
          "temperature");
  refused([](auto& p) { p.set_top_p(0); }, "top_p");
  refused([](auto& p) { p.set_min_p(-0.1F); }, "min_p");
  refused([](auto& p) { p.set_repetition_penalty(0); }, "repetition_penalty");
  refused([](auto& p) { p.set_presence_penalty(3); }, "presence_penalty");
  refused([](auto& p) { p.set_frequency_penalty(-3); }, "frequency_penalty");
  refused([](auto& p) { p.set_max_new_tokens(0); }, "max_new_tokens");
  refused(
      [](auto& p) {
        for (int i = 0; i < 9; ++i) p.add_stop("stop");
      },
      "stop");
  refused([](auto& p) { p.add_stop(std::string(300, 'x')); }, "stop");
  refused([](auto& p) { p.mutable_constraint()->set_json_schema(R"({"not":{}})"); }, "#/not");
  refused([](auto& p) { p.mutable_constraint()->set_regex("(a"); }, "constraint.regex");
}

TEST_F(BadInputTest, AConstraintThatTheServiceWouldNotObey) {
  v1::ModelInfo older = FakeLanguageModel("emoji", 1);
  older.clear_constrains_output();
  llm_.models().Set({older});
  StartGateway();
  const std::string session = NewSession();
  v1::ChatRequest request = Question(session, "x");
  request.mutable_sampling()->mutable_constraint()->mutable_json_object();
  ExpectRefused(request, kUnimplemented, "constraint");
  EXPECT_TRUE(Turns(session).empty());
  request.mutable_sampling()->mutable_constraint()->mutable_text();
  EXPECT_TRUE(Ask(request).status.ok());
}

TEST_F(BadInputTest, ASessionAndItsQuestionMayNotFitEachOther) {
  StartGateway();
  v1::CreateSessionRequest bound, endless;
  bound.mutable_sampling()->mutable_constraint()->mutable_json_object();
  endless.mutable_sampling()->set_ignore_eos(true);
  const std::string first = NewSession(bound), second = NewSession(endless);
  v1::ChatRequest request = Question(first, "x");
  request.mutable_sampling()->set_ignore_eos(true);
  ExpectRefused(request, kInvalid, "ignore_eos");
  request = Question(second, "x");
  request.mutable_sampling()->mutable_constraint()->mutable_json_object();
  ExpectRefused(request, kInvalid, "ignore_eos");
  EXPECT_TRUE(Turns(first).empty());
  EXPECT_TRUE(Turns(second).empty());
}

TEST_F(BadInputTest, APromptLongerThanTheContext) {
  llm_.Set({.context_tokens = 5});
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = Ask(Question(session, "a b c d e f"));
  EXPECT_EQ(answer.status.error_code(), kInvalid);
  EXPECT_EQ(answer.status.error_message(), "the prompt has 6 tokens, the context 5")
      << "both numbers, unchanged";
  EXPECT_EQ(Turns(session)[0].state(), v1::TURN_STATE_FAILED);
  EXPECT_EQ(Ask(Question(session, "a b")).text, "a b! pictures: 0, turns: 1");
}

// It would be kept, and be read with every later question of its session.
TEST_F(BadInputTest, ATextThatNoPromptCanHoldIsNotRecorded) {
  v1::ModelInfo small = FakeLanguageModel("emoji", 1);
  small.set_context_tokens(100);
  llm_.models().Set({small});
  StartGateway();
  const std::string text(64 * 100 + 1, 'x');
  v1::CreateSessionRequest dropping;
  dropping.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  v1::ChatRequest alone;
  alone.add_messages()->set_role(v1::ROLE_USER);
  alone.mutable_messages(0)->set_text(text);
  for (const v1::ChatRequest& request :
       {Question(NewSession(), text), Question(NewSession(dropping), text), alone}) {
    const Answer answer = Ask(request);
    EXPECT_EQ(answer.status.error_code(), kInvalid);
    EXPECT_THAT(answer.status.error_message(), HasSubstr("6401 bytes of text"));
    EXPECT_THAT(answer.status.error_message(), HasSubstr("at most 6400"));
    if (request.session_id().empty()) continue;
    EXPECT_TRUE(Turns(request.session_id()).empty());
  }
  EXPECT_EQ(llm_.generates(), 0);
  const std::string session = NewSession();
  EXPECT_TRUE(Ask(Question(session, text.substr(1))).status.ok());
  EXPECT_THAT(Ask(Question(session, "more")).status.error_message(), HasSubstr("bytes of text"))
      << "the whole conversation counts";
  EXPECT_EQ(Turns(session).size(), 1U);
}

TEST_F(BadInputTest, ConversationsWithoutASession) {
  StartGateway();
  const auto chat = [](std::vector<std::pair<v1::Role, std::string>> messages) {
    v1::ChatRequest request;
    for (auto& [role, text] : messages) {
      auto* message = request.add_messages();
      message->set_role(role);
      message->set_text(text);
    }
    return request;
  };
  const auto kUser = v1::ROLE_USER, kSystem = v1::ROLE_SYSTEM, kAssistant = v1::ROLE_ASSISTANT;
  ExpectRefused(chat({{kUser, "a"}, {kAssistant, "b"}}), kInvalid, "end with a user message");
  ExpectRefused(chat({{kSystem, "a"}}), kInvalid, "end with a user message");
  ExpectRefused(chat({{kUser, "a"}, {kUser, "b"}}), kInvalid, "messages[1].role is out of order");
  ExpectRefused(chat({{kAssistant, "a"}, {kUser, "b"}}), kInvalid, "messages[0].role");
  ExpectRefused(chat({{kUser, "a"}, {kSystem, "b"}, {kUser, "c"}}), kInvalid, "messages[1].role");
  ExpectRefused(chat({{v1::ROLE_UNSPECIFIED, "a"}}), kInvalid, "messages[0].role");
  ExpectRefused(chat({{kUser, ""}}), kInvalid, "messages[0].text is empty");
  auto request = chat({{kUser, "a"}});
  request.set_session_id(NewSession());
  ExpectRefused(request, kInvalid, "messages are for calls without a session");
  request = chat({{kUser, "a"}});
  request.mutable_messages(0)->add_images()->set_id(std::string(64, 'a'));
  ExpectRefused(request, kInvalid, "send the file as data");
  request = chat({{kSystem, "s"}, {kUser, "a"}});
  request.mutable_messages(0)->add_images()->set_data(FakePicture(1));
  ExpectRefused(request, kInvalid, "only user messages have pictures");
  request = chat({{kUser, "a"}});
  request.set_idempotency_key("key");
  ExpectRefused(request, kInvalid, "idempotency_key belongs to a session");
  request = chat({{kUser, "a"}});
  request.set_on_disconnect(v1::ON_DISCONNECT_DETACH);
  ExpectRefused(request, kInvalid, "ON_DISCONNECT_DETACH needs a session");
  EXPECT_TRUE(Ask(chat({{kUser, "a"}})).status.ok());
}

TEST_F(BadInputTest, TextThatIsNoUtf8) {
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = Ask(Question(session, "caf\xe9"));
  EXPECT_FALSE(answer.status.ok());
  EXPECT_EQ(llm_.generates(), 0);
  EXPECT_TRUE(Ask(Question(session, "caf\xc3\xa9")).status.ok());
}

TEST_F(BadInputTest, Sessions) {
  StartGateway();
  v1::CreateSessionResponse created;
  const auto create = [&](const std::function<void(v1::CreateSessionRequest&)>& set) {
    v1::CreateSessionRequest request;
    set(request);
    return stub_->CreateSession(Context().get(), request, &created);
  };
  EXPECT_EQ(create([](auto& r) { r.set_model("gpt"); }).error_code(), kNotFound);
  EXPECT_EQ(create([](auto& r) { r.mutable_idle_expiry()->set_seconds(-5); }).error_code(),
            kInvalid);
  EXPECT_EQ(
      create([](auto& r) { r.mutable_idle_expiry()->set_seconds(int64_t{1} << 40); }).error_code(),
      kInvalid);
  EXPECT_EQ(create([](auto& r) {
              r.set_context_overflow(static_cast<v1::ContextOverflow>(9));
            }).error_code(),
            kInvalid);
  EXPECT_EQ(create([](auto& r) { r.set_title(std::string(2000, 't')); }).error_code(), kInvalid);
  EXPECT_EQ(create([](auto& r) { (*r.mutable_metadata())[""] = "value"; }).error_code(), kInvalid);
  EXPECT_EQ(create([](auto& r) {
              for (int i = 0; i < 65; ++i) (*r.mutable_metadata())[std::to_string(i)] = "value";
            }).error_code(),
            kInvalid);
  EXPECT_EQ(create([](auto& r) { r.mutable_sampling()->set_top_p(2); }).error_code(), kInvalid);

  v1::ListSessionsRequest list;
  v1::ListSessionsResponse listed;
  list.set_page_size(1001);
  EXPECT_EQ(stub_->ListSessions(Context().get(), list, &listed).error_code(), kInvalid);
  list.set_page_size(10);
  list.set_page_token("garbage");
  EXPECT_EQ(stub_->ListSessions(Context().get(), list, &listed).error_code(), kInvalid);

  v1::ListTurnsRequest turns;
  v1::ListTurnsResponse turned;
  EXPECT_EQ(stub_->ListTurns(Context().get(), turns, &turned).error_code(), kInvalid);
  turns.set_session_id("nobody");
  EXPECT_EQ(stub_->ListTurns(Context().get(), turns, &turned).error_code(), kNotFound);

  v1::CancelTurnRequest cancel;
  v1::CancelTurnResponse cancelled;
  cancel.set_session_id("nobody");
  EXPECT_EQ(stub_->CancelTurn(Context().get(), cancel, &cancelled).error_code(), kNotFound);
  cancel.set_session_id(NewSession());
  cancel.set_turn_id("nothing");
  EXPECT_EQ(stub_->CancelTurn(Context().get(), cancel, &cancelled).error_code(), kNotFound);

  v1::DeleteSessionRequest remove;
  v1::DeleteSessionResponse removed;
  remove.set_session_id("nobody");
  EXPECT_EQ(stub_->DeleteSession(Context().get(), remove, &removed).error_code(), kNotFound);

  v1::ResumeTurnRequest resume;
  const auto refused = [&](grpc::StatusCode code, const std::string& part) {
    auto context = Context();
    auto reader = stub_->ResumeTurn(context.get(), resume);
    v1::ResumeTurnResponse resumed;
    EXPECT_FALSE(reader->Read(&resumed));
    const auto status = reader->Finish();
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(part));
  };
  refused(kInvalid, "session_id is empty");
  resume.set_session_id("nobody");
  refused(kInvalid, "turn_id is empty");
  resume.set_turn_id(std::string(500, 't'));
  refused(kInvalid, "turn_id has 500 bytes");
  resume.set_turn_id("nothing");
  refused(kNotFound, "no session");
  resume.set_session_id(NewSession());
  refused(kNotFound, "no turn \"nothing\"");
}

// Whoever reads models may name any: an error that quotes the name, and its line in the log, would
// be as long.
TEST_F(BadInputTest, LongNamesOfModelsAreNotRepeated) {
  StartGateway();
  const auto rollouts = v1::RolloutService::NewStub(channel_);
  const std::string name(500'000, '\1');
  const auto refused = [](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), kInvalid);
    EXPECT_LT(status.error_message().size(), 300u);
    EXPECT_THAT(status.error_message(), HasSubstr(" has 500000 bytes, allowed are "));
  };
  v1::GetRolloutRequest rollout;
  rollout.set_name(name);
  v1::GetRolloutResponse rollout_response;
  refused(rollouts->GetRollout(Context().get(), rollout, &rollout_response));
  v1::SetCanaryShareRequest share;
  share.set_name(name);
  v1::SetCanaryShareResponse share_response;
  refused(rollouts->SetCanaryShare(Context().get(), share, &share_response));
  v1::ListModelsRequest list;
  list.set_name(name);
  v1::ListModelsResponse list_response;
  refused(models_->ListModels(Context().get(), list, &list_response));
  v1::GetModelStatusRequest state;
  state.mutable_model()->set_name(name);
  v1::GetModelStatusResponse state_response;
  refused(models_->GetModelStatus(Context().get(), state, &state_response));
  v1::LoadModelRequest load;
  load.mutable_model()->set_name(name);
  load.mutable_model()->set_version(1);
  v1::LoadModelResponse load_response;
  refused(models_->LoadModel(Context().get(), load, &load_response));
  v1::SetLabelRequest label;
  label.set_name(name);
  label.set_label("stable");
  v1::SetLabelResponse label_response;
  refused(models_->SetLabel(Context().get(), label, &label_response));
  label.set_name("emoji");
  label.set_label(name);
  refused(models_->SetLabel(Context().get(), label, &label_response));
  v1::RollbackRequest back;
  back.set_name(name);
  v1::RollbackResponse back_response;
  refused(models_->Rollback(Context().get(), back, &back_response));
}

// Their features would be computed and held for a prompt that cannot be.
TEST_F(BadInputTest, PicturesThatNoContextCanHoldAreNotEncoded) {
  v1::ModelInfo small = FakeLanguageModel("emoji", 1);
  small.set_context_tokens(2048);
  small.set_feature_rows(576);
  small.set_image_tokens(2880);  // the most that one may take; these are small
  llm_.models().Set({small});
  StartGateway();
  const auto alone = [](std::vector<std::string> pictures) {
    v1::ChatRequest request;
    for (const std::string& picture : pictures) {
      if (!request.messages().empty()) {
        v1::ChatMessage& answer = *request.add_messages();
        answer.set_role(v1::ROLE_ASSISTANT);
        answer.set_text("so");
      }
      v1::ChatMessage& message = *request.add_messages();
      message.set_role(v1::ROLE_USER);
      message.set_text("x");
      message.add_images()->set_data(picture);
    }
    return request;
  };
  ExpectRefused(alone({FakePicture(1), FakePicture(2), FakePicture(3), FakePicture(4)}), kInvalid,
                "the prompt is too long: 4 pictures of 576 tokens or more, 2304 together; "
                "this model's maximum context length is 2048 tokens");
  ExpectRefused(alone({FakePicture(1), FakePicture(1), FakePicture(1), FakePicture(1)}), kInvalid,
                "4 pictures");
  EXPECT_EQ(vision_.encodes(), 0);
  EXPECT_TRUE(Ask(alone({FakePicture(1), FakePicture(2), FakePicture(3)})).status.ok());

  const std::string session = NewSession();
  EXPECT_TRUE(Ask(Question(session, "x", {FakePicture(5), FakePicture(6)})).status.ok());
  const int encodes = vision_.encodes();
  ExpectRefused(Question(session, "x", {FakePicture(7), FakePicture(8)}), kInvalid, "4 pictures");
  v1::CreateSessionRequest dropping;
  dropping.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  const std::string other = NewSession(dropping);
  ExpectRefused(
      Question(other, "x", {FakePicture(5), FakePicture(6), FakePicture(7), FakePicture(8)}),
      kInvalid, "4 pictures");
  EXPECT_EQ(vision_.encodes(), encodes);
  EXPECT_TRUE(Ask(Question(other, "x", {FakePicture(5), FakePicture(6)})).status.ok());
  EXPECT_TRUE(Ask(Question(other, "x", {FakePicture(7), FakePicture(8)})).status.ok())
      << "older turns may go";
}

}  // namespace
}  // namespace llava
