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
  llm_.Set({.delay = milliseconds(30)});
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
      });
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_TRUE(answer.is_finished);
  EXPECT_TRUE(
      admission_->WaitUntilIdle(CondVar::Clock::now() + kSlowdown * std::chrono::seconds(5)));
}

TEST_F(ShutdownTest, StopBreaksOffAndStoresWhatIsThere) {
  llm_.Set({.delay = milliseconds(50)});
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
  EXPECT_THAT(answer.status.error_message(), HasSubstr("stopped"));
  StartGateway();
  const auto turns = Turns(session);
  ASSERT_EQ(turns.size(), 1U);
  EXPECT_EQ(turns[0].state(), v1::TURN_STATE_FAILED);
  EXPECT_EQ(turns[0].finish_reason(), v1::FINISH_REASON_INTERRUPTED);
  EXPECT_EQ(turns[0].answer_text(), answer.text);
  EXPECT_THAT(turns[0].error_message(), HasSubstr("stopped"));
}

}  // namespace
}  // namespace llava
