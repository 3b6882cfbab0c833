// A store that cannot take the end of a turn, as on a full disk, and what such a turn may leave.

#include <gmock/gmock.h>

#include <deque>
#include <filesystem>
#include <future>
#include <thread>

#include "server/gateway/openai_json.h"
#include "server/gateway/sqlite.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"
#include "tests/server/gateway/no_space.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kQuestion[] = "a b c d";
constexpr char kAnswer[] = "a b c d! pictures: 0, turns: 1";

class StoreFaultsTest : public GatewayTest {
 protected:
  // On a connection of its own, beside the gateway's.
  void Sql(const std::string& sql) {
    auto database = SqlDatabase::Open(options_.data_dir + "/sessions.db");
    ASSERT_TRUE(database.ok()) << database.status();
    const auto status = (*database)->Script(sql);
    ASSERT_TRUE(status.ok()) << status;
  }
  void RefuseEnds() {
    Sql("CREATE TRIGGER full BEFORE UPDATE OF finish_reason ON turns WHEN NEW.finish_reason <> 0"
        " BEGIN SELECT RAISE(ABORT, 'no room'); END");
  }
  void Mend() { Sql("DROP TRIGGER full"); }
  v1::ChatRequest KeyedQuestion(const std::string& session) {
    v1::ChatRequest request = Question(session, kQuestion);
    request.set_idempotency_key("k");
    return request;
  }
  // A gateway that ended in the middle of an answer in `session`, which it made.
  Answer LeaveAnAnswer(std::string& session) {
    llm_.Set({.pause_after = 1});
    StartGateway();
    session = NewSession();
    auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, kQuestion)); });
    EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_journal_bytes_total") > 0; }));
    StopGateway();
    const Answer stopped = asking.get();
    llm_.Set({});
    return stopped;
  }
  void ExpectTheRest(const std::string& session, const Answer& stopped) {
    const Answer rest = Resume(session, stopped.started.turn_id(), stopped.text.size(), 0);
    ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
    EXPECT_EQ(stopped.text + rest.text, kAnswer);
  }
};

TEST_F(StoreFaultsTest, AnAnswerWaitsForTheStoreAndItsSessionWithIt) {
  StartGateway();
  const std::string session = NewSession();
  RefuseEnds();
  std::promise<std::string> begun;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(KeyedQuestion(session), [&](grpc::ClientContext&, const Answer& so_far) {
      begun.set_value(so_far.started.turn_id());
    });
  });
  const std::string turn = begun.get_future().get();
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_total") == 1; }));
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_RUNNING);
  const Answer next = Ask(Question(session, "and now"));
  EXPECT_EQ(next.status.error_code(), grpc::StatusCode::ABORTED) << next.status.error_message();
  auto again = std::async(std::launch::async, [&] { return Ask(KeyedQuestion(session)); });
  auto resuming = std::async(std::launch::async, [&] { return Resume(session, turn, 2); });
  EXPECT_EQ(asking.wait_for(std::chrono::milliseconds(500)), std::future_status::timeout);
  Mend();
  const Answer answer = asking.get(), repeated = again.get(), rest = resuming.get();
  for (const Answer* each : {&answer, &repeated, &rest}) {
    EXPECT_TRUE(each->status.ok()) << each->status.error_message();
    EXPECT_TRUE(each->is_finished);
    EXPECT_EQ(each->started.turn_id(), turn);
  }
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(repeated.text, kAnswer);
  EXPECT_EQ("a " + rest.text, kAnswer);
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_FINISHED);
  EXPECT_EQ(Ask(Question(session, "and now")).text, "and now! pictures: 0, turns: 2");
  EXPECT_EQ(Metric("llava_gateway_turns_running"), 0);
}

// However many of a key wait for a turn's end, they take no place from those that only look.
TEST_F(StoreFaultsTest, CallsThatWaitForATurnKeepNobodyFromLooking) {
  StartGateway();
  const std::string session = NewSession();
  RefuseEnds();
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, kQuestion)); });
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_total") == 1; }));
  struct Call {
    std::unique_ptr<grpc::ClientContext> context;
    v1::CancelTurnRequest request;
    v1::CancelTurnResponse response;
    std::promise<grpc::Status> status;
  };
  std::deque<Call> calls(300);
  for (Call& call : calls) {
    call.context = Context();
    call.request.set_session_id(session);
    stub_->async()->CancelTurn(call.context.get(), &call.request, &call.response,
                               [&call](grpc::Status status) { call.status.set_value(status); });
  }
  v1::GetSessionRequest look;
  look.set_session_id(session);
  for (int i = 0; i < 20; ++i) {
    v1::GetSessionResponse found;
    EXPECT_TRUE(stub_->GetSession(Context().get(), look, &found).ok());
  }
  Mend();
  for (Call& call : calls) {
    EXPECT_TRUE(call.status.get_future().get().ok());
    EXPECT_TRUE(call.response.was_running());
  }
  EXPECT_EQ(asking.get().text, kAnswer);
}

TEST_F(StoreFaultsTest, AProcessThatStopsLeavesSuchAnAnswerToTheNext) {
  StartGateway();
  const std::string session = NewSession();
  RefuseEnds();
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, kQuestion)); });
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_total") == 1; }));
  StopGateway();
  const Answer answer = asking.get();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("goes on with it"));
  Mend();
  StartGateway();
  const Answer rest = Resume(session, answer.started.turn_id(), answer.text.size(), 0);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(answer.text + rest.text, kAnswer);
  EXPECT_EQ(Turns(session).at(0).answer_text(), kAnswer);
}

TEST_F(StoreFaultsTest, AnAnswerIsTakenUpAsSoonAsTheStoreCanNoteIt) {
  std::string session;
  const Answer stopped = LeaveAnAnswer(session);
  Sql("CREATE TRIGGER full BEFORE UPDATE OF tries ON running_turns WHEN NEW.tries > 0"
      " BEGIN SELECT RAISE(ABORT, 'no room'); END");
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_store_failures_total") > 0; }));
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_RUNNING);
  Mend();
  ExpectTheRest(session, stopped);
}

// The version that was chosen is gone, and the store cannot take that another one answers.
TEST_F(StoreFaultsTest, AnAcknowledgedTurnWaitsForTheStoreToTakeAnotherVersion) {
  StartGateway();
  const std::string session = NewSession();
  Sql("CREATE TRIGGER full BEFORE UPDATE OF model_version ON turns WHEN NEW.model_version = 2"
      " BEGIN SELECT RAISE(ABORT, 'no room'); END");
  llm_.models().Exchange({FakeLanguageModel("emoji", 2)});  // the gateway has not heard of it yet
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, kQuestion)); });
  EXPECT_EQ(asking.wait_for(std::chrono::milliseconds(700)), std::future_status::timeout);
  Mend();
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(answer.finished.model().version(), 2U);
  EXPECT_EQ(Turns(session).at(0).model().version(), 2U);
}

TEST_F(StoreFaultsTest, AnAnswerIsTakenUpAsSoonAsTheStoreCanReadIt) {
  std::string session;
  const Answer stopped = LeaveAnAnswer(session);
  Sql("ALTER TABLE session_images RENAME TO elsewhere");
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_store_failures_total") > 1; }));
  EXPECT_EQ(Turns(session).at(0).state(), v1::TURN_STATE_RUNNING);
  Sql("ALTER TABLE elsewhere RENAME TO session_images");
  ExpectTheRest(session, stopped);
}

TEST_F(StoreFaultsTest, ABegunAnswerWaitsForAPictureThatCannotBeReadNow) {
  llm_.Set({.fail_after_deltas = 2, .deaths = 1, .pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const fs::path images = options_.data_dir + "/images", aside = folder_.At("aside");
  fs::path file;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(Question(session, kQuestion, {FakePicture(1)}),
               [&](grpc::ClientContext&, const Answer&) {
                 file = fs::directory_iterator(images)->path();
                 fs::rename(file, aside);
                 fs::create_directory(file);  // can be opened, but not read
                 llm_.Set({});
                 llm_.ForgetFeatures();
                 llm_.Release();
               });
  });
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_store_failures_total") > 1; }));
  fs::remove(file);
  fs::rename(aside, file);
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "a b c d! pictures: 1, turns: 1");
}

TEST_F(StoreFaultsTest, AFullDiskIsAFaultAndNoLimitOfTheCaller) {
  StartGateway();
  const std::string session = NewSession();
  const std::string faults_total = "llava_gateway_request_faults_total{method=\"Chat\"}";
  const double faults = Metric(faults_total);
  EXPECT_EQ(Metric("llava_gateway_store_failures_total"), 0);
  {
    const NoSpace full;
    const Answer refused = Ask(Question(session, kQuestion));
    EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_THAT(refused.status.error_message(), HasSubstr("free disk space under --data-dir"));
    const absl::Status status = FromGrpc(refused.status);
    EXPECT_TRUE(HasReason(status, kReasonDiskFull));
    EXPECT_EQ(OpenAiError(status).status, 503);
    EXPECT_TRUE(Turns(session).empty()) << "but what is there can be read";
    v1::ListSessionsResponse page;
    const auto listed = stub_->ListSessions(Context().get(), {}, &page);
    EXPECT_TRUE(listed.ok()) << listed.error_message();
    EXPECT_EQ(page.sessions_size(), 1);
  }
  EXPECT_EQ(Metric(faults_total), faults + 1);
  EXPECT_GE(Metric("llava_gateway_store_failures_total"), 1);
  EXPECT_EQ(Ask(Question(session, kQuestion)).text, kAnswer);
}

// Who stops a turn is not told that it is over when the next process goes on with it.
TEST_F(StoreFaultsTest, ATurnWhoseStopCannotBeKeptIsNotSaidToBeStopped) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  RefuseEnds();
  std::promise<void> begun;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(Question(session, kQuestion),
               [&](grpc::ClientContext&, const Answer&) { begun.set_value(); });
  });
  begun.get_future().wait();
  admission_->StartDraining();
  v1::CancelTurnRequest request;
  request.set_session_id(session);
  v1::CancelTurnResponse response;
  const auto status = stub_->CancelTurn(Context().get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("the next process"));
  StopGateway();
  const Answer answer = asking.get();
  Mend();
  llm_.Set({});
  StartGateway();
  const Answer rest = Resume(session, answer.started.turn_id(), answer.text.size(), 0);
  EXPECT_EQ(answer.text + rest.text, kAnswer);
}

// As earlier versions left them, which gave the session back although the end was not stored.
TEST_F(StoreFaultsTest, TwoUnfinishedTurnsOfASessionAreTakenUpInTheirOrder) {
  StartGateway();
  const std::string session = NewSession();
  const std::string first = Ask(Question(session, kQuestion)).started.turn_id();
  llm_.Set({.pause_after = 1});
  std::string second;
  auto asking = std::async(std::launch::async, [&] { return Ask(Question(session, "e f g")); });
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == 2; }));
  ASSERT_TRUE(Eventually([&] { return Turns(session).size() == 2; }));
  second = Turns(session).at(1).id();
  const std::string left = folder_.At("left");
  fs::copy(options_.data_dir, left, fs::copy_options::recursive);
  fs::remove(left + "/sessions.db-shm");
  StopGateway();
  asking.get();
  options_.data_dir = left;
  Sql("UPDATE turns SET state = 1, finish_reason = 0, answer_text = '' WHERE number = 1;"
      "INSERT INTO running_turns SELECT session_id, id, '', 1, 0, 0, created_us, NULL, 0, 0"
      " FROM turns WHERE number = 1;");
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == 3; }));
  EXPECT_EQ(Ask(Question(session, "me too")).status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(Resume(session, second).status.error_code(), grpc::StatusCode::UNAVAILABLE)
      << "it has not begun again";
  llm_.Set({});
  llm_.Release();
  EXPECT_EQ(Resume(session, first).text, kAnswer);
  ASSERT_TRUE(Eventually([&] { return Turns(session).at(1).state() != v1::TURN_STATE_RUNNING; }));
  const auto turns = Turns(session);
  EXPECT_EQ(turns.at(0).answer_text(), kAnswer);
  EXPECT_EQ(turns.at(1).answer_text(), "e f g! pictures: 0, turns: 2");
  EXPECT_EQ(turns.at(1).state(), v1::TURN_STATE_FINISHED) << turns.at(1).error_message();
  EXPECT_EQ(Ask(Question(session, "me too")).text, "me too! pictures: 0, turns: 3");
}

}  // namespace
}  // namespace llava
