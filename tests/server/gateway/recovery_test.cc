// What the next process does with turns that a crash left: on whose terms they go on, in which
// order, and when they are given up.

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "model/digest/sha256.h"
#include "server/gateway/sqlite.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::system_clock;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

constexpr char kQuestion[] = "a b c d e f g h i j k l m n o p";
constexpr char kAnswer[] = "a b c d e f g h i j k l m n o p! pictures: 0, turns: 1";
// No word comes before the test is over.
constexpr milliseconds kNever{3600'000};

class RecoveryTest : public GatewayTest {
 protected:
  // What a process leaves that is killed now: its files as they are. The next gateway finds those.
  void Crash() {
    const std::string left = folder_.At("left-") + std::to_string(++crashes_);
    fs::copy(options_.data_dir, left, fs::copy_options::recursive);
    fs::remove(left + "/sessions.db-shm");
    StopGateway();
    options_.data_dir = left;
  }
  // Asks, and crashes when there is a word. What the services do next is still to be set.
  Answer AskAndCrash(const v1::ChatRequest& request,
                     milliseconds timeout = kSlowdown * std::chrono::seconds(60)) {
    llm_.Set({.pause_after = 1});
    std::promise<void> begun;
    auto asking = std::async(std::launch::async, [&] {
      bool told = false;
      const auto tell = [&](grpc::ClientContext&, const Answer&) {
        told = true;
        begun.set_value();
      };
      Answer answer = Ask(request, tell, timeout);
      if (!told) begun.set_value();  // the test will fail, and not hang
      return answer;
    });
    begun.get_future().wait();
    Crash();
    return asking.get();
  }
  // What is on record about the running turn; -1: none is running.
  int64_t Tries() {
    auto database = SqlDatabase::Open(options_.data_dir + "/sessions.db");
    int64_t tries = -1;
    EXPECT_TRUE((*database)
                    ->Query("SELECT max(tries) FROM running_turns", {},
                            [&](const SqlRow& row) { tries = row.IsNull(0) ? -1 : row.Int(0); })
                    .ok());
    return tries;
  }
  // Brings the deadline of the running turn nearer, as if so much time had passed.
  void Hasten(std::chrono::microseconds time) {
    Script("UPDATE running_turns SET deadline_us = deadline_us - " + std::to_string(time.count()));
  }
  void Script(const std::string& sql) {
    auto database = SqlDatabase::Open(options_.data_dir + "/sessions.db");
    EXPECT_TRUE((*database)->Script(sql).ok());
  }
  void WriteKeys(const std::string& lines) {
    options_.keys_file = folder_.At("keys.yaml");
    std::ofstream(options_.keys_file) << lines;
  }
  static std::string KeyLine(const std::string& name, const std::string& more) {
    return "- {name: " + name + ", sha256: " + ToHex(HashBytes("key of " + name)) + more + "}\n";
  }

  int crashes_ = 0;
};

TEST_F(RecoveryTest, AnAnswerGoesOnOnTheTermsOfItsKey) {
  WriteKeys(KeyLine("ann", ", weight: 7, concurrent-turns: 1, requests-per-minute: 2"));
  StartGateway();
  key_ = "key of ann";
  const std::string session = NewSession(), other = NewSession();
  v1::ChatRequest request = Question(session, kQuestion);
  request.set_priority(-3);
  const Answer killed = AskAndCrash(request);
  const auto deadline = llm_.last_deadline();
  const int before = llm_.generates();
  llm_.Set({.pause_after = 0});
  Hasten(std::chrono::seconds(20));  // which a new deadline would win
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return llm_.generates() > before; }));
  const v1::GenerateRequest sent = llm_.last_request();
  EXPECT_EQ(sent.tenant(), "ann");
  EXPECT_EQ(sent.cache_salt(), "ann");
  EXPECT_EQ(sent.weight(), 7U);
  EXPECT_EQ(sent.priority(), -3);
  EXPECT_LT(llm_.last_deadline() - deadline, -std::chrono::seconds(10))
      << "no time is won by a crash";
  const Answer second = Ask(Question(other, "x"));
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(second.status.error_message(), HasSubstr("1 answers under way"));
  llm_.Set({});
  llm_.Release();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(killed.text + rest.text, kAnswer);
  EXPECT_EQ(rest.started.turn_number(), 1U);
  for (int i = 0; i < 2; ++i) {
    const Answer next = Ask(Question(other, "x"));
    EXPECT_TRUE(next.status.ok()) << next.status.error_message() << ": it counts as no question";
  }
}

// As one that finds its port taken.
TEST_F(RecoveryTest, AProcessThatNeverServesIsNoDeath) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndCrash(Question(session, kQuestion));
  llm_.Set({});
  for (int i = 0; i < 3; ++i) {
    Metrics metrics("gateway");
    Admission admission;
    auto gateway = Gateway::Open(options_, metrics, admission);
    ASSERT_TRUE(gateway.ok()) << gateway.status();
    std::this_thread::sleep_for(milliseconds(200));  // in which it would try
    EXPECT_EQ(Tries(), 0) << i;
    (*gateway)->Stop();
    gateway->reset();
    EXPECT_EQ(Tries(), 0) << i;
  }
  StartGateway();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(killed.text + rest.text, kAnswer);
}

TEST_F(RecoveryTest, AnAnswerThatEndsWithItsReaderStillDoes) {
  StartGateway();
  const std::string session = NewSession();
  v1::ChatRequest request = Question(session, kQuestion);
  request.set_on_disconnect(v1::ON_DISCONNECT_CANCEL);
  const Answer killed = AskAndCrash(request);
  options_.resume_grace = std::chrono::hours(1);  // the reader that comes back is not waited for
  llm_.Set({.pause_after = 1});
  StartGateway();
  v1::ResumeTurnRequest resume;
  resume.set_session_id(session);
  resume.set_turn_id(killed.started.turn_id());
  const auto context = Context();
  const auto reader = stub_->ResumeTurn(context.get(), resume);
  v1::ResumeTurnResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context->TryCancel();
  reader->Finish();
  EXPECT_TRUE(Eventually([&] { return Turns(session).at(0).state() != v1::TURN_STATE_RUNNING; }));
  EXPECT_EQ(Turns(session).at(0).finish_reason(), v1::FINISH_REASON_CANCELLED);
}

TEST_F(RecoveryTest, AnAnswerOutlivesTheKeyThatAskedForIt) {
  WriteKeys(KeyLine("ann", ", weight: 7") + KeyLine("ops", ", role: admin"));
  StartGateway();
  key_ = "key of ann";
  const std::string session = NewSession();
  const Answer killed = AskAndCrash(Question(session, kQuestion));
  WriteKeys(KeyLine("ops", ", role: admin"));
  llm_.Set({});
  const int before = llm_.generates();
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return llm_.generates() > before; }));
  EXPECT_EQ(llm_.last_request().tenant(), "ann");
  EXPECT_EQ(llm_.last_request().weight(), 7U);
  EXPECT_EQ(Resume(session, killed.started.turn_id()).status.error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  key_ = "key of ops";
  EXPECT_EQ(Resume(session, killed.started.turn_id()).text, kAnswer);
}

TEST_F(RecoveryTest, AnswersWaitForTheirPlacesTheOldestGoesFirst) {
  options_.gate = {.max_running = 2, .max_waiting = 0};
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string first = NewSession(), second = NewSession();
  auto older = std::async(std::launch::async, [&] { return Ask(Question(first, kQuestion)); });
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == 1; }));
  const Answer newer = AskAndCrash(Question(second, kQuestion));
  const std::string turn = older.get().started.turn_id();
  options_.gate.max_running = 1;
  llm_.Set({.pause_after = 0});
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == 3; }));
  EXPECT_EQ(llm_.last_request().session_id(), first);
  EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_waiting") == 1; }));
  EXPECT_EQ(Ask(Question(NewSession(), "x")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Turns(second).at(0).state(), v1::TURN_STATE_RUNNING);
  llm_.Set({});
  llm_.Release();
  EXPECT_EQ(Resume(first, turn).text, kAnswer);
  const Answer rest = Resume(second, newer.started.turn_id(), newer.text.size(), 0);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(newer.text + rest.text, kAnswer);
  EXPECT_EQ(llm_.generates(), 4);
}

TEST_F(RecoveryTest, AnAnswerThatWaitsCanBeStoppedOrLeftToTheNextProcess) {
  options_.gate = {.max_running = 3, .max_waiting = 0};
  llm_.Set({.pause_after = 1});
  StartGateway();
  std::vector<std::string> sessions;
  std::vector<std::future<Answer>> asking;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(NewSession());
    asking.push_back(
        std::async(std::launch::async, [&, i] { return Ask(Question(sessions[i], kQuestion)); }));
    ASSERT_TRUE(Eventually([&] { return llm_.generates() == i + 1; }));
  }
  sessions.push_back(NewSession());
  const Answer last = AskAndCrash(Question(sessions[2], kQuestion));
  for (auto& each : asking) each.get();
  options_.gate.max_running = 1;
  llm_.Set({.delay = kNever});
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_waiting") == 2; }));
  v1::CancelTurnRequest cancel;
  cancel.set_session_id(sessions[2]);
  v1::CancelTurnResponse cancelled;
  ASSERT_TRUE(stub_->CancelTurn(Context().get(), cancel, &cancelled).ok());
  EXPECT_TRUE(cancelled.was_running());
  const v1::Turn stopped = Turns(sessions[2]).at(0);
  EXPECT_EQ(stopped.finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_THAT(stopped.answer_text(), StartsWith(last.text));
  EXPECT_EQ(stopped.model().version(), 1U);
  StopGateway();  // in order: that is nobody's fault
  EXPECT_EQ(Tries(), 0);
  llm_.Set({});
  StartGateway();
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(
        Eventually([&] { return Turns(sessions[i]).at(0).state() == v1::TURN_STATE_FINISHED; }));
    EXPECT_EQ(Turns(sessions[i]).at(0).answer_text(), kAnswer);
  }
}

TEST_F(RecoveryTest, AnAnswerWhoseTimeHasPassedEndsWithItsText) {
  StartGateway();
  const std::string session = NewSession();
  const std::string question = kQuestion;
  const auto timeout = kSlowdown * milliseconds(5000);
  const auto end = system_clock::now() + timeout;
  const Answer killed = AskAndCrash(Question(session, question), timeout);
  ASSERT_THAT(killed.text, Not(IsEmpty()));
  std::this_thread::sleep_until(end + milliseconds(500));
  const int before = llm_.generates();
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Turns(session).at(0).state() == v1::TURN_STATE_FAILED; }));
  const v1::Turn turn = Turns(session).at(0);
  EXPECT_EQ(turn.finish_reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_THAT(turn.error_message(), HasSubstr("the deadline of the call"));
  EXPECT_THAT(turn.answer_text(), Not(IsEmpty()));
  EXPECT_THAT(question, StartsWith(turn.answer_text()));
  EXPECT_EQ(turn.model().version(), 1U);
  EXPECT_EQ(llm_.generates(), before);
  EXPECT_EQ(Resume(session, turn.id()).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(RecoveryTest, AnAnswerOverWhichTheGatewayDiesTwiceIsGivenUp) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndCrash(Question(session, kQuestion));
  llm_.Set({.delay = kNever});
  for (int tries = 1; tries <= 2; ++tries) {
    const int before = llm_.generates();
    StartGateway();
    ASSERT_TRUE(Eventually([&] { return llm_.generates() > before; }));
    EXPECT_EQ(Tries(), tries) << "on record before it is tried";
    Crash();
  }
  const int before = llm_.generates();
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Turns(session).at(0).state() == v1::TURN_STATE_FAILED; }));
  const v1::Turn turn = Turns(session).at(0);
  EXPECT_EQ(turn.finish_reason(), v1::FINISH_REASON_ERROR);
  EXPECT_THAT(turn.error_message(), HasSubstr("given up: the gateway died 2 times"));
  EXPECT_THAT(turn.answer_text(), StartsWith(killed.text));
  EXPECT_EQ(llm_.generates(), before);
  EXPECT_EQ(Metric("llava_gateway_turns_given_up_total"), 1);
  const Answer replay = Resume(session, turn.id(), killed.text.size());
  EXPECT_EQ(replay.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(killed.text + replay.text, turn.answer_text());
  llm_.Set({});
  EXPECT_TRUE(Ask(Question(session, "something else")).status.ok());
}

TEST_F(RecoveryTest, ANewWordClearsTheAnswerOfSuspicion) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndCrash(Question(session, kQuestion));
  for (int i = 0; i < 4; ++i) {
    const int before = llm_.generates();
    llm_.Set({.delay = kNever});
    StartGateway();
    ASSERT_TRUE(Eventually([&] { return llm_.generates() > before; }));
    Crash();  // before there is a word
    llm_.Set({.pause_after = 1});
    StartGateway();
    ASSERT_TRUE(Eventually([&] { return llm_.generates() > before + 1; }));
    ASSERT_TRUE(Eventually([&] { return Tries() == 0; })) << i;
    Crash();
  }
  llm_.Set({});
  StartGateway();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size(), 0);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(killed.text + rest.text, kAnswer);
  EXPECT_EQ(rest.started.restarts(), 9U);
}

// Else a reader of the first process that took it up would pass for one of the second.
TEST_F(RecoveryTest, ThatItWasTakenUpIsKnownThoughTheJournalIsLost) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndCrash(Question(session, kQuestion));
  for (int restarts = 1; restarts <= 2; ++restarts) {
    fs::remove_all(options_.data_dir + "/journal");
    StartGateway();  // the service still pauses after a word
    ASSERT_TRUE(Eventually([&] { return Tries() == 0 && llm_.generates() == 1 + restarts; }));
    if (restarts < 2) Crash();
  }
  EXPECT_EQ(Resume(session, killed.started.turn_id(), 1, 1).status.error_code(),
            grpc::StatusCode::DATA_LOSS);
  llm_.Set({});
  llm_.Release();
  const Answer answer = Resume(session, killed.started.turn_id());
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(answer.started.restarts(), 2U);
}

// The journal is never synced, the store is: after a power cut it may be the older one.
TEST_F(RecoveryTest, AnAnswerAskedAnewIsNotGoneOnWithFromItsEarlierRun) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  v1::ChatRequest question = Question(session, kQuestion);
  question.mutable_sampling()->set_seed(7);
  const std::string older = folder_.At("older");
  const Answer first = Ask(question, [&](grpc::ClientContext&, const Answer&) {
    fs::copy(options_.data_dir + "/journal", older);
    llm_.Release();
  });
  ASSERT_TRUE(first.is_finished) << first.status.error_message();
  v1::RegenerateTurnRequest again;
  again.set_session_id(session);
  again.set_turn_id(first.started.turn_id());
  *again.mutable_sampling() = question.sampling();
  const auto context = Context();
  const auto reader = stub_->RegenerateTurn(context.get(), again);
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == 2; }));
  Crash();
  fs::remove_all(options_.data_dir + "/journal");
  fs::copy(older, options_.data_dir + "/journal");
  llm_.Set({});
  StartGateway();
  const Answer answer = Resume(session, first.started.turn_id());
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_FALSE(llm_.last_request().has_continue_from());
}

TEST_F(RecoveryTest, AnAnswerGoesOnWithTheVersionThatWroteItsText) {
  llm_.Set({.pause_after = 0});
  StartGateway();
  const std::string session = NewSession();
  std::promise<void> begun;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(Question(session, kQuestion),
               [&](grpc::ClientContext&, const Answer&) { begun.set_value(); });
  });
  // Version 1 begins the answer and dies before its first word; there is only version 2 then.
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_journal_bytes_total") > 0; }));
  llm_.server().Stop();
  llm_.models().Set({FakeLanguageModel("emoji", 2)});
  llm_.Set({.pause_after = 1});
  llm_.server().Start();
  begun.get_future().wait();
  Crash();
  const Answer killed = asking.get();
  EXPECT_EQ(killed.started.model().version(), 2U);
  llm_.Set({});
  StartGateway();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size(), 0);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(killed.text + rest.text, kAnswer);
  EXPECT_EQ(rest.finished.model().version(), 2U);
}

TEST_F(RecoveryTest, AnAnswerThatWaitsForAServiceIsNotBlamed) {
  StartGateway();
  const std::string session = NewSession();
  const Answer killed = AskAndCrash(Question(session, kQuestion));
  llm_.server().Stop();
  for (int i = 0; i < 4; ++i) {
    StartGateway(/*wait=*/false);
    // Tried, noted, and noted again that nothing came of it.
    ASSERT_TRUE(Eventually(
        [&] { return Metric("llava_gateway_store_commit_seconds_count") >= 2 && Tries() == 0; }));
    Crash();
  }
  llm_.Set({});
  llm_.server().Start();
  StartGateway();
  const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size(), 0);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(killed.text + rest.text, kAnswer);
}

TEST_F(RecoveryTest, AServiceThatFailsMeanwhileEndsTheAnswerOrIsReplaced) {
  for (const bool dies : {false, true}) {
    StartGateway();
    const std::string session = NewSession();
    const Answer killed = AskAndCrash(Question(session, kQuestion));
    if (dies) {
      llm_.Set({.fail_after_deltas = 2, .deaths = 1});
    } else {
      llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "a bug"}, .failures = 1});
    }
    StartGateway();
    const Answer rest = Resume(session, killed.started.turn_id(), killed.text.size(), 0);
    ASSERT_TRUE(Eventually([&] { return Turns(session).at(0).state() != v1::TURN_STATE_RUNNING; }));
    const v1::Turn turn = Turns(session).at(0);
    EXPECT_EQ(killed.text + rest.text, turn.answer_text());
    if (dies) {
      EXPECT_EQ(turn.answer_text(), kAnswer);
    } else {
      EXPECT_EQ(rest.status.error_code(), grpc::StatusCode::INTERNAL);
      EXPECT_THAT(turn.answer_text(), Not(IsEmpty()));
      EXPECT_EQ(turn.finish_reason(), v1::FINISH_REASON_ERROR);
    }
    llm_.Set({});
    EXPECT_TRUE(Ask(Question(session, "still there")).status.ok());
    StopGateway();
  }
}

TEST_F(RecoveryTest, NothingTookLessThanNoTimeWhereTheClockWasSetBack) {
  StartGateway();
  const std::string session = NewSession();
  AskAndCrash(Question(session, kQuestion));
  llm_.Set({});
  Script("UPDATE running_turns SET asked_us = asked_us + 3600000000");
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return Turns(session).at(0).state() == v1::TURN_STATE_FINISHED; }));
  const v1::Timings timings = Turns(session).at(0).timings();
  EXPECT_GE(timings.total_seconds(), 0) << timings.DebugString();
  EXPECT_GE(timings.time_to_first_token_seconds(), 0) << timings.DebugString();
}

TEST_F(RecoveryTest, ManyAnswersAreTakenUpAtOnce) {
  constexpr int kTurns = 40;
  llm_.Set({.pause_after = 1});
  StartGateway();
  std::vector<std::string> sessions;
  std::vector<std::future<Answer>> asking;
  for (int i = 0; i < kTurns; ++i) {
    sessions.push_back(NewSession());
    asking.push_back(
        std::async(std::launch::async, [&, i] { return Ask(Question(sessions[i], kQuestion)); }));
  }
  ASSERT_TRUE(Eventually([&] { return llm_.generates() == kTurns; }));
  Crash();
  for (auto& each : asking) each.get();
  llm_.Set({});
  StartGateway();
  for (const std::string& session : sessions) {
    ASSERT_TRUE(
        Eventually([&] { return Turns(session).at(0).state() == v1::TURN_STATE_FINISHED; }));
    EXPECT_EQ(Turns(session).at(0).answer_text(), kAnswer);
  }
  EXPECT_EQ(Metric("llava_gateway_turns_taken_up_total"), kTurns);
  EXPECT_EQ(Tries(), -1);
}

}  // namespace
}  // namespace llava
