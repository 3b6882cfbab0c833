// Streams that survive: readers that come and go, gateways and workers that die.

#include <gmock/gmock.h>

#include <filesystem>
#include <future>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "server/gateway/sqlite.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr char kQuestion[] = "a b c d e f g h i j k l m n o p";
constexpr char kAnswer[] = "a b c d e f g h i j k l m n o p! pictures: 0, turns: 1";

class ResumeTest : public GatewayTest {
 protected:
  // Asks and stops the gateway after a word. The folder is left as by a process that was killed;
  // what the services do next is still to be set.
  Answer AskAndDie(const v1::ChatRequest& request) {
    llm_.Set({.pause_after = 1});
    std::promise<void> begun;
    auto asking = std::async(std::launch::async, [&] {
      return Ask(request, [&](grpc::ClientContext&, const Answer&) { begun.set_value(); });
    });
    begun.get_future().wait();
    StopGateway();
    return asking.get();
  }
  v1::ChatRequest Keyed(const std::string& session, const std::string& text) {
    v1::ChatRequest request = Question(session, text);
    request.set_idempotency_key("key");
    return request;
  }
};

TEST_F(ResumeTest, SeveralReadersFollowOneTurn) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  std::vector<std::future<Answer>> readers;
  const Answer first =
      Ask(Question(session, kQuestion), [&](grpc::ClientContext&, const Answer& so_far) {
        for (const uint64_t offset : {0, 1}) {
          readers.push_back(std::async(std::launch::async, [this, session, so_far, offset] {
            return Resume(session, so_far.started.turn_id(), offset);
          }));
        }
        const Answer beyond = Resume(session, so_far.started.turn_id(), 1000);
        EXPECT_EQ(beyond.status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
        EXPECT_THAT(beyond.status.error_message(), HasSubstr("after_offset is 1000"));
        llm_.Release();
      });
  EXPECT_EQ(first.text, kAnswer);
  for (auto& reader : readers) {
    const Answer other = reader.get();
    ASSERT_TRUE(other.status.ok()) << other.status.error_message();
    EXPECT_EQ(other.text, std::string(kAnswer).substr(&reader - readers.data()));
    EXPECT_TRUE(other.offsets_fit);
    EXPECT_EQ(other.started.turn_id(), first.started.turn_id());
    EXPECT_EQ(other.started.seed(), first.started.seed());
    EXPECT_EQ(other.started.restarts(), 0U);
    EXPECT_EQ(other.finished.SerializeAsString(), first.finished.SerializeAsString());
    EXPECT_EQ(other.events_after_end, 0);
  }
  EXPECT_EQ(llm_.generates(), 1);
}

// Of a turn that ran out of time before it said a word nothing is worth a replay.
TEST_F(ResumeTest, ATurnWithoutAWordInTimeFreesItsKey) {
  options_.request_timeout = kSlowdown * milliseconds(1000);
  llm_.Set({.pause_after = 0});
  StartGateway();
  const std::string session = NewSession();
  const Answer late = Ask(Keyed(session, kQuestion));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(late.text, IsEmpty());
  StopGateway();
  options_.request_timeout = std::chrono::minutes(10);
  llm_.Set({});
  StartGateway();
  const Answer answer = Ask(Keyed(session, kQuestion));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_NE(answer.started.turn_id(), late.started.turn_id());
}

TEST_F(ResumeTest, ATurnThatHasEndedIsReplayed) {
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = Ask(Question(session, "caf\xc3\xa9 x"));
  const std::string& turn = answer.started.turn_id();
  for (const uint64_t offset : std::vector<uint64_t>{0, 3, 5, answer.text.size()}) {
    const Answer replay = Resume(session, turn, offset);
    ASSERT_TRUE(replay.status.ok()) << replay.status.error_message();
    EXPECT_EQ(replay.text, answer.text.substr(offset));
    EXPECT_TRUE(replay.offsets_fit);
    EXPECT_EQ(replay.started.SerializeAsString(), answer.started.SerializeAsString());
    EXPECT_EQ(replay.finished.SerializeAsString(), answer.finished.SerializeAsString());
  }
  EXPECT_EQ(Resume(session, turn, answer.text.size() + 1).status.error_code(),
            grpc::StatusCode::OUT_OF_RANGE);
  const Answer within = Resume(session, turn, 4);
  EXPECT_EQ(within.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(within.status.error_message(), HasSubstr("within a UTF-8 character"));
  EXPECT_EQ(Resume(NewSession(), turn).status.error_code(), grpc::StatusCode::NOT_FOUND)
      << "the turn of another session";
}

TEST_F(ResumeTest, AnAnswerOutlivesItsReader) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer left = AskAndLeave(Question(session, kQuestion));
  EXPECT_EQ(left.status.error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(Eventually([&] {
    return Metric("llava_gateway_requests_total{code=\"CANCELLED\",method=\"Chat\"}") == 1;
  })) << "the call ends with its client";
  llm_.Release();
  const Answer rest = Resume(session, left.started.turn_id(), left.text.size());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(left.text + rest.text, kAnswer);
  EXPECT_EQ(llm_.generates(), 1);
  EXPECT_EQ(llm_.cancelled(), 0);
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_FINISHED);
}

TEST_F(ResumeTest, AnAnswerThatNobodyReadsEndsAfterTheGrace) {
  options_.resume_grace = milliseconds(100);
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer left = AskAndLeave(Question(session, kQuestion));
  ASSERT_TRUE(Eventually([&] { return Turns(session).at(0).state() == v1::TURN_STATE_FAILED; }));
  const v1::Turn turn = Turns(session).at(0);
  EXPECT_EQ(turn.finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_THAT(turn.error_message(), HasSubstr("--resume-grace"));
  EXPECT_THAT(turn.answer_text(), Not(IsEmpty()));
  EXPECT_TRUE(Eventually([&] { return llm_.cancelled() == 1; }));
  const Answer replay = Resume(session, left.started.turn_id(), left.text.size());
  ASSERT_TRUE(replay.status.ok()) << replay.status.error_message();
  EXPECT_EQ(left.text + replay.text, turn.answer_text());
  EXPECT_EQ(replay.finished.reason(), v1::FINISH_REASON_CANCELLED);
}

TEST_F(ResumeTest, AReaderThatFallsBehindIsSentAwayAndTheTextGoesOn) {
  std::string question;
  for (int i = 0; i < 150; ++i) {
    question += std::string(10'000, static_cast<char>('a' + i % 26)) + " ";
  }
  question.pop_back();
  const std::string expected = question + "! pictures: 0, turns: 1";
  v1::ModelInfo large = FakeLanguageModel("emoji", 1);
  large.set_context_tokens(100'000);
  llm_.models().Set({large});
  StartGateway();
  const std::string session = NewSession();
  grpc::ChannelArguments arguments;  // a connection that takes little which nobody reads
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16'384);
  const auto stub = v1::ChatService::NewStub(
      grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
  const auto context = Context();
  const auto reader = stub->Chat(context.get(), Question(session, question));
  v1::ChatResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const std::string turn = response.event().turn_started().turn_id();
  // It reads nothing until all is over.
  ASSERT_TRUE(Eventually([&] { return Turns(session).at(0).state() == v1::TURN_STATE_FINISHED; }));
  std::string text;
  while (reader->Read(&response)) text += response.event().text().text();
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("bytes behind"));
  EXPECT_EQ(Metric("llava_gateway_request_faults_total{method=\"Chat\"}"), 0);
  EXPECT_LT(text.size(), expected.size());
  const Answer rest = Resume(session, turn, text.size());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_TRUE(rest.offsets_fit);
  EXPECT_TRUE(text + rest.text == expected) << "every byte once";
}

TEST_F(ResumeTest, ARequestSentAgainGetsTheSameTurn) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer left = AskAndLeave(Keyed(session, kQuestion));
  llm_.Set({});
  const Answer running =
      Ask(Keyed(session, kQuestion), [&](grpc::ClientContext&, const Answer&) { llm_.Release(); });
  ASSERT_TRUE(running.status.ok()) << running.status.error_message();
  EXPECT_EQ(running.started.turn_id(), left.started.turn_id());
  EXPECT_EQ(running.text, kAnswer);
  const Answer ended = Ask(Keyed(session, kQuestion));
  ASSERT_TRUE(ended.status.ok()) << ended.status.error_message();
  EXPECT_EQ(ended.started.turn_id(), left.started.turn_id());
  EXPECT_EQ(ended.text, kAnswer);
  EXPECT_TRUE(ended.is_finished);
  EXPECT_EQ(llm_.generates(), 1);
  EXPECT_EQ(Turns(session).size(), 1U);
  const Answer other = Ask(Keyed(session, "something else"));
  EXPECT_EQ(other.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(other.status.error_message(), HasSubstr(left.started.turn_id()));
  EXPECT_TRUE(Ask(Keyed(NewSession(), "something else")).status.ok());
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_running") == 0; }));

  llm_.Set({.pause_after = 1});
  const std::string third = NewSession();
  Ask(Keyed(third, kQuestion), [&](grpc::ClientContext&, const Answer&) {
    EXPECT_EQ(Ask(Keyed(third, "else")).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(Ask(Question(third, kQuestion)).status.error_code(), grpc::StatusCode::ABORTED)
        << "without the key it is another question";
    llm_.Release();
  });
}

TEST_F(ResumeTest, ARequestSentAgainGetsTheTurnThatAnotherProcessBegan) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndDie(Keyed(session, kQuestion));
  llm_.Set({});
  StartGateway();
  const Answer other = Ask(Keyed(session, "something else"));
  EXPECT_EQ(other.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const Answer answer = Ask(Keyed(session, kQuestion));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.started.turn_id(), killed.started.turn_id());
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(Turns(session).size(), 1U);
}

TEST_F(ResumeTest, AKeyWhoseTurnFailedBeforeItsTextMayBeUsedAgain) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "a bug"}, .failures = 1});
  EXPECT_EQ(Ask(Keyed(session, "x")).status.error_code(), grpc::StatusCode::INTERNAL);
  const Answer answer = Ask(Keyed(session, "x"));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "x! pictures: 0, turns: 1");
}

TEST_F(ResumeTest, AnotherProcessGoesOnWithTheAnswer) {
  StartGateway();
  const std::string session = NewSession();
  ASSERT_TRUE(Ask(Question(session, "x", {FakePicture(1)})).status.ok());
  v1::ChatRequest question = Question(session, kQuestion);
  question.mutable_sampling()->mutable_constraint()->mutable_json_object();
  const Answer killed = AskAndDie(question);
  ASSERT_THAT(killed.text, Not(IsEmpty()));
  llm_.ForgetFeatures();
  llm_.Set({.pause_after = 0});
  StartGateway();
  EXPECT_EQ(Ask(Question(session, "me")).status.error_code(), grpc::StatusCode::ABORTED)
      << "one turn at a time";
  llm_.Set({});
  llm_.Release();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size(), 0);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(killed.text + rest.text, "a b c d e f g h i j k l m n o p! pictures: 1, turns: 2");
  EXPECT_EQ(rest.started.seed(), killed.started.seed());
  EXPECT_EQ(rest.started.restarts(), 1U);
  const v1::GenerateRequest sent = llm_.last_request();
  EXPECT_GT(sent.continue_from().tokens().ids_size(), 0);
  EXPECT_EQ(sent.continue_from().tokens().tokenizer_digest(), std::string(32, 'k'));
  EXPECT_GE(sent.continue_from().text_bytes_emitted(), killed.text.size());
  EXPECT_EQ(sent.sampling().seed(), killed.started.seed());
  EXPECT_TRUE(sent.sampling().constraint().has_json_object());
  EXPECT_EQ(sent.messages_size(), 3);
  const v1::Turn turn = Turns(session).at(1);
  EXPECT_EQ(turn.state(), v1::TURN_STATE_FINISHED);
  EXPECT_EQ(turn.answer_text(), killed.text + rest.text);
  EXPECT_EQ(turn.usage().generated_tokens(), 20U);
  EXPECT_EQ(Metric("llava_gateway_turns_taken_up_total"), 1);
  StopGateway();
  StartGateway();
  EXPECT_EQ(llm_.generates(), 3) << "an answer that has ended is left alone";
}

TEST_F(ResumeTest, ATurnWithoutAWordBeginsAgain) {
  llm_.Set({.pause_after = 0});
  StartGateway();
  const std::string session = NewSession();
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, "x y")); });
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == 1; }));
  StopGateway();
  const Answer killed = asking.get();
  EXPECT_THAT(killed.text, IsEmpty());
  llm_.Set({});
  StartGateway();
  const Answer answer = Resume(session, killed.started.turn_id());
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "x y! pictures: 0, turns: 1");
  EXPECT_EQ(answer.started.seed(), killed.started.seed());
}

// The journal is not synced: a machine that goes down may lose its end.
TEST_F(ResumeTest, AReaderAheadOfWhatSurvivedIsTold) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndDie(Question(session, kQuestion));
  std::filesystem::remove_all(options_.data_dir + "/journal");
  llm_.Set({.pause_after = 0});
  StartGateway();
  const std::string& turn = killed.started.turn_id();
  const Answer ahead = Resume(session, turn, killed.text.size(), killed.started.restarts());
  EXPECT_EQ(ahead.status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(ahead.text, IsEmpty());
  llm_.Set({});
  llm_.Release();
  const Answer anew = Resume(session, turn, 0, killed.started.restarts());
  ASSERT_TRUE(anew.status.ok()) << anew.status.error_message();
  EXPECT_EQ(anew.text, kAnswer);
  EXPECT_EQ(Resume(session, turn, killed.text.size(), 0).status.error_code(),
            grpc::StatusCode::DATA_LOSS)
      << "also when the turn has ended";
  EXPECT_TRUE(Resume(session, turn, killed.text.size(), anew.started.restarts()).status.ok());
}

TEST_F(ResumeTest, NoOtherVersionGoesOnWithAnAnswer) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndDie(Question(session, kQuestion));
  llm_.models().Set({FakeLanguageModel("emoji", 2)});
  llm_.Set({});
  options_.continue_timeout = kSlowdown * milliseconds(2000);
  StartGateway();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size());
  EXPECT_EQ(rest.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(rest.status.error_message(), HasSubstr("version 1 of \"emoji\""));
  const v1::Turn turn = Turns(session).at(0);
  EXPECT_EQ(turn.finish_reason(), v1::FINISH_REASON_INTERRUPTED);
  EXPECT_EQ(turn.answer_text(), killed.text + rest.text);
  EXPECT_EQ(turn.model().version(), 1U);
}

TEST_F(ResumeTest, AnotherWorkerGoesOnWithTheAnswer) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set({.fail_after_deltas = 5, .deaths = 1});
  const Answer answer = Ask(Question(session, kQuestion, {FakePicture(1)}));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "a b c d e f g h i j k l m n o p! pictures: 1, turns: 1");
  EXPECT_TRUE(answer.offsets_fit);
  EXPECT_EQ(llm_.generates(), 2);
  EXPECT_EQ(llm_.last_request().continue_from().tokens().ids_size(), 5);
  EXPECT_EQ(llm_.last_request().continue_from().text_bytes_emitted(), 9U);
}

TEST_F(ResumeTest, AServiceThatDiesIsWaitedFor) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  auto asking = std::async(std::launch::async, [&] {
    return Ask(Question(session, kQuestion), [&](grpc::ClientContext&, const Answer&) {
      llm_.server().Stop();
      llm_.ForgetFeatures();
      llm_.Set({});
    });
  });
  ASSERT_TRUE(Eventually([&] { return !reason().empty(); }));
  llm_.server().Start();
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
}

TEST_F(ResumeTest, AServiceThatStaysAwayEndsTheAnswer) {
  options_.continue_timeout = milliseconds(500);
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer answer = Ask(Question(session, kQuestion),
                            [&](grpc::ClientContext&, const Answer&) { llm_.server().Stop(); });
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("llm service at " + options_.llm));
  EXPECT_EQ(Turns(session).at(0).answer_text(), answer.text);
  EXPECT_EQ(Turns(session).at(0).finish_reason(), v1::FINISH_REASON_ERROR);
  AwaitReady(false);
  llm_.Set({});
  llm_.server().Start();
  AwaitReady(true);
  EXPECT_TRUE(Ask(Question(session, "x")).status.ok());
}

TEST_F(ResumeTest, ATurnThatKilledTwoWorkersIsGivenUp) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set({.fail_after_deltas = 3});
  const Answer answer = Ask(Question(session, kQuestion));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("given up: 2 language workers died"));
  EXPECT_EQ(answer.text, "a b c d e f") << "two workers gave three words each";
  EXPECT_EQ(llm_.generates(), 2);
  StopGateway();
  StartGateway();
  EXPECT_EQ(llm_.generates(), 2) << "nor after a restart";
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_FAILED);
  llm_.Set({});
  EXPECT_TRUE(Ask(Question(session, "something else")).status.ok());
}

TEST_F(ResumeTest, DeathsAreCountedAcrossProcesses) {
  StartGateway();
  const std::string session = NewSession();
  llm_.Set({.fail_after_deltas = 3, .deaths = 1, .pause_after = 3});
  std::promise<void> died;
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, kQuestion)); });
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == 2; }));
  StopGateway();
  const Answer killed = asking.get();
  llm_.Set({.fail_after_deltas = 3, .deaths = 1});
  StartGateway();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size());
  EXPECT_EQ(rest.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(rest.status.error_message(), HasSubstr("given up"));
}

TEST_F(ResumeTest, NoTurnMakesRoomThatNeedNot) {
  v1::ModelInfo small = FakeLanguageModel("emoji", 1);
  small.set_context_tokens(60);  // words; a turn has 20
  llm_.models().Set({small});
  StartGateway();
  v1::CreateSessionRequest create;
  create.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  create.mutable_sampling()->set_max_new_tokens(4);
  const std::string session = NewSession(create);
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(Ask(Question(session, "a b c d e f g h")).status.ok()) << i;
  }
  const auto turns = Turns(session);
  EXPECT_TRUE(turns.at(0).dropped_from_context());
  EXPECT_FALSE(turns.at(1).dropped_from_context()) << "12 words too many, and the first has 20";
}

TEST_F(ResumeTest, OldTurnsMakeRoomIfTheSessionSaysSo) {
  v1::ModelInfo small = FakeLanguageModel("emoji", 1);
  small.set_context_tokens(32);  // the fake counts words
  llm_.models().Set({small});
  StartGateway();
  v1::CreateSessionRequest create;
  create.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  create.mutable_sampling()->set_max_new_tokens(4);
  create.set_system_prompt("be brief");
  const std::string session = NewSession(create);
  ASSERT_TRUE(Ask(Question(session, "one two three", {FakePicture(1)})).status.ok());
  ASSERT_TRUE(Ask(Question(session, "four five six")).status.ok());
  EXPECT_EQ(llm_.last_request().messages_size(), 4);
  ASSERT_TRUE(Ask(Question(session, "seven eight nine")).status.ok());
  v1::GenerateRequest sent = llm_.last_request();
  EXPECT_EQ(sent.messages(0).text(), "be brief");
  EXPECT_EQ(sent.messages(1).text(), "four five six") << "the first turn had to go";
  EXPECT_EQ(sent.messages(1).images_size(), 1) << "but its picture, the newest, stays";
  const auto turns = Turns(session);
  EXPECT_TRUE(turns.at(0).dropped_from_context());
  EXPECT_FALSE(turns.at(1).dropped_from_context());
  EXPECT_THAT(turns.at(0).answer_text(), Not(IsEmpty())) << "marked, not deleted";
}

// A client that reads nothing of what lies there for it holds it no longer than that.
TEST_F(ResumeTest, AReaderThatTakesNothingLosesItsCall) {
  options_.send_patience = milliseconds(50);
  options_.resume_grace = milliseconds(50);  // so often is it looked at
  StartGateway();
  const std::string session = NewSession();
  const std::string turn = Ask(Question(session, kQuestion)).started.turn_id();
  auto database = SqlDatabase::Open(options_.data_dir + "/sessions.db");
  ASSERT_TRUE((*database)->Script("UPDATE turns SET answer_text = hex(zeroblob(8000000))").ok());
  database->reset();
  v1::ResumeTurnRequest request;
  request.set_session_id(session);
  request.set_turn_id(turn);
  ASSERT_TRUE(Eventually([&] {
    const auto context = Context();
    const auto reader = stub_->ResumeTurn(context.get(), request);
    std::this_thread::sleep_for(milliseconds(200));
    v1::ResumeTurnResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish().error_code() == grpc::StatusCode::CANCELLED;
  }));
}

}  // namespace
}  // namespace llava
