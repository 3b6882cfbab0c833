// Requests sent again: who only reads an answer that there is passes no gate.

#include <gmock/gmock.h>

#include <fstream>
#include <future>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;

constexpr char kQuestion[] = "a b c d e f g h i j k l m n o p";
constexpr char kAnswer[] = "a b c d e f g h i j k l m n o p! pictures: 0, turns: 1";

class RepeatTest : public GatewayTest {
 protected:
  // A gateway whose only key has these limits.
  void Limit(const std::string& limits) {
    options_.keys_file = folder_.At("keys.yaml");
    std::ofstream(options_.keys_file)
        << "- {name: ann, sha256: " << ToHex(HashBytes("secret")) << limits << "}\n";
    key_ = "secret";
  }
  v1::ChatRequest Keyed(const std::string& session, const std::string& text) {
    v1::ChatRequest request = Question(session, text);
    request.set_idempotency_key("key");
    return request;
  }
  // The same question again, while its turn stands still, then when it has ended.
  void ExpectJoinsAndReplays(const v1::ChatRequest& request, const std::string& turn) {
    const int generates = llm_.generates();
    const Answer joined =
        Ask(request, [&](grpc::ClientContext&, const Answer&) { llm_.Release(); });
    EXPECT_TRUE(joined.status.ok()) << joined.status.error_message();
    EXPECT_EQ(joined.started.turn_id(), turn);
    EXPECT_EQ(joined.text, kAnswer);
    const Answer replayed = Ask(request);
    EXPECT_TRUE(replayed.status.ok()) << replayed.status.error_message();
    EXPECT_EQ(replayed.started.turn_id(), turn);
    EXPECT_EQ(replayed.text, kAnswer);
    EXPECT_EQ(llm_.generates(), generates);
    EXPECT_EQ(Turns(request.session_id()).size(), 1U);
  }
};

TEST_F(RepeatTest, IsNoFurtherAnswerOfItsKey) {
  Limit(", concurrent-turns: 1");
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer left = AskAndLeave(Keyed(session, kQuestion));
  EXPECT_EQ(Ask(Question(session, "x")).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectJoinsAndReplays(Keyed(session, kQuestion), left.started.turn_id());
}

TEST_F(RepeatTest, IsNoFurtherQuestionOfItsKey) {
  Limit(", requests-per-minute: 1, tokens-per-minute: 600");
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer left = AskAndLeave(Keyed(session, kQuestion));
  ASSERT_EQ(left.status.error_code(), grpc::StatusCode::CANCELLED);
  ExpectJoinsAndReplays(Keyed(session, kQuestion), left.started.turn_id());
  const Answer other = Ask(Keyed(session, "something else"));
  EXPECT_EQ(other.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(other.status.error_message(), HasSubstr(left.started.turn_id()));
}

TEST_F(RepeatTest, NeedsNoPlaceOfItsOwn) {
  options_.gate = {.max_running = 1, .max_waiting = 0};
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  const Answer left = AskAndLeave(Keyed(session, kQuestion));
  ExpectJoinsAndReplays(Keyed(session, kQuestion), left.started.turn_id());
}

// The client of a killed gateway asks again under its key; the next process makes the answer.
TEST_F(RepeatTest, FindsTheTurnThatAnotherProcessBegan) {
  Limit(", concurrent-turns: 1, requests-per-minute: 1");
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession();
  std::promise<void> begun;
  auto asking = std::async(std::launch::async, [&] {
    return Ask(Keyed(session, kQuestion),
               [&](grpc::ClientContext&, const Answer&) { begun.set_value(); });
  });
  begun.get_future().wait();
  StopGateway();
  const std::string turn = asking.get().started.turn_id();
  const int generates = llm_.generates();
  StartGateway();
  ASSERT_TRUE(Eventually([&] { return llm_.generates() > generates; }));
  ExpectJoinsAndReplays(Keyed(session, kQuestion), turn);
}

TEST_F(RepeatTest, IsReplayedWhileTheSessionIsBusy) {
  StartGateway();
  const std::string session = NewSession();
  const Answer first = Ask(Keyed(session, kQuestion));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  llm_.Set({.pause_after = 1});
  const Answer second = Ask(Question(session, "x y z"), [&](grpc::ClientContext&, const Answer&) {
    const Answer replayed = Ask(Keyed(session, kQuestion));
    EXPECT_TRUE(replayed.status.ok()) << replayed.status.error_message();
    EXPECT_EQ(replayed.started.turn_id(), first.started.turn_id());
    EXPECT_EQ(replayed.text, kAnswer);
    llm_.Release();
  });
  EXPECT_TRUE(second.status.ok()) << second.status.error_message();
}

}  // namespace
}  // namespace llava
