// llava-chat at a keyboard: prompt, Ctrl-C, Ctrl-D, signals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <thread>

#include "tests/client/chat/program.h"
#include "tests/client/fake_gateway.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using Clock = std::chrono::steady_clock;
// Well below the 30 s that a call may take, well above what is needed.
constexpr auto kLong = kSlowdown * std::chrono::seconds(15);

class ChatTerminalTest : public ::testing::Test {
 protected:
  // An answer that goes on until it is stopped.
  void AnswerForever(bool ignore_cancel = false) {
    gateway_.set_script({.events = {Started("session-1", "t"), Text(0, "once upon")},
                         .status = grpc::Status::OK,
                         .wait_for_cancel = true,
                         .ignore_cancel = ignore_cancel});
  }
  FakeGateway gateway_;
  ChatOnTerminal chat_{{"--gateway", gateway_.address()}};
};

TEST_F(ChatTerminalTest, AnswersAndQuits) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  chat_.Type("hello\n");
  ASSERT_TRUE(chat_.WaitFor("You asked: hello")) << chat_.screen();
  ASSERT_TRUE(chat_.WaitFor("tokens/s")) << chat_.screen();
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  chat_.Type("/quit\n");
  EXPECT_EQ(chat_.Wait(), 0);
  EXPECT_THAT(gateway_.deleted(), ElementsAre("session-1"));
}

TEST_F(ChatTerminalTest, CtrlDQuits) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  chat_.Type("\x04");
  EXPECT_EQ(chat_.Wait(), 0);
  EXPECT_THAT(gateway_.deleted(), ElementsAre("session-1"));
}

TEST_F(ChatTerminalTest, BackspaceTakesAWholeCharacter) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  chat_.Type("b\u00e4\u20ac\x7f\x7f\u00f6\n");
  ASSERT_TRUE(chat_.WaitFor("You asked: b\u00f6")) << chat_.screen();
  EXPECT_EQ(gateway_.asked().at(0).text(), "b\u00f6");
}

TEST_F(ChatTerminalTest, CtrlCStopsTheAnswerAndNotTheProgram) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  AnswerForever();
  chat_.Type("tell me\n");
  ASSERT_TRUE(chat_.WaitFor("once upon")) << chat_.screen();
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.WaitFor("(stopped)")) << chat_.screen();
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  ASSERT_EQ(gateway_.cancelled().size(), 1u);
  EXPECT_EQ(gateway_.cancelled()[0].turn_id(), "t");

  gateway_.set_script({.events = {Started("session-1", "t2"), Text(0, "still here"), Finished(10)},
                       .status = grpc::Status::OK});
  chat_.Type("and?\n");
  EXPECT_TRUE(chat_.WaitFor("still here")) << chat_.screen();
}

TEST_F(ChatTerminalTest, SecondCtrlCLeavesAGatewayThatHangs) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  AnswerForever(/*ignore_cancel=*/true);
  chat_.Type("tell me\n");
  ASSERT_TRUE(chat_.WaitFor("once upon")) << chat_.screen();
  chat_.Type("\x03");
  while (gateway_.cancelled().empty()) {
  }
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.WaitFor("stopped")) << chat_.screen();
  EXPECT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
}

TEST_F(ChatTerminalTest, TwoCtrlCAtThePromptEndIt) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  chat_.Type("half a li\x03");
  ASSERT_TRUE(chat_.WaitFor("Ctrl-C again")) << chat_.screen();
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  chat_.Type("hello\n");  // makes the next one the first again
  ASSERT_TRUE(chat_.WaitFor("You asked: hello")) << chat_.screen();
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.WaitFor("Ctrl-C again")) << chat_.screen();
  chat_.Type("\x03");
  EXPECT_EQ(chat_.Wait(), 0);
  EXPECT_THAT(gateway_.deleted(), ElementsAre("session-1"));
}

TEST_F(ChatTerminalTest, SigtermStopsTheAnswerAndEnds) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  AnswerForever();
  chat_.Type("tell me\n");
  ASSERT_TRUE(chat_.WaitFor("once upon")) << chat_.screen();
  chat_.Signal(SIGTERM);
  EXPECT_EQ(chat_.Wait(), 128 + SIGTERM);
  EXPECT_EQ(gateway_.cancelled().size(), 1u);
  EXPECT_THAT(gateway_.deleted(), ElementsAre("session-1"));
}

TEST_F(ChatTerminalTest, OneCtrlCEndsTheWaitForAGatewayThatIsAway) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  const grpc::Status away(grpc::StatusCode::UNAVAILABLE, "socket closed");
  gateway_.set_script({.events = {Started("session-1", "t"), Text(0, "once upon")},
                       .status = away,
                       .hang_cancel = true});
  gateway_.set_resume_scripts({{.events = {}, .status = away}});
  chat_.Type("tell me\n");
  ASSERT_TRUE(chat_.WaitFor("once upon")) << chat_.screen();
  while (gateway_.resumed().empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.WaitFor("stopped")) << chat_.screen();
  EXPECT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
}

TEST_F(ChatTerminalTest, OneCtrlCEndsTheWaitOfARefusedQuestion) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  gateway_.set_script({.events = {}, .status = Overloaded("too busy", 20)});
  chat_.Type("tell me\n");
  ASSERT_TRUE(chat_.WaitFor("refused for now: too busy")) << chat_.screen();
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.WaitFor("stopped")) << chat_.screen();
  EXPECT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
}

TEST_F(ChatTerminalTest, CtrlCEndsOtherCallsThatHang) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  gateway_.Hang("ListModels");
  chat_.Type("/models\n");
  gateway_.WaitForHanging(1);
  const auto begin = Clock::now();
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.WaitFor("stopped")) << chat_.screen();
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  EXPECT_LT(Clock::now() - begin, kLong);
  chat_.Type("/models\n");
  gateway_.WaitForHanging(2);
  chat_.Signal(SIGTERM);
  EXPECT_EQ(chat_.Wait(), 128 + SIGTERM);
  EXPECT_LT(Clock::now() - begin, kLong);
  EXPECT_THAT(gateway_.deleted(), ElementsAre("session-1"));
}

TEST_F(ChatTerminalTest, AGatewayThatHangsDoesNotHoldWhoEndsTheChat) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  gateway_.Hang("DeleteSession");
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.WaitFor("Ctrl-C again")) << chat_.screen();
  const auto begin = Clock::now();
  chat_.Type("\x03");
  EXPECT_EQ(chat_.Wait(), 0);
  EXPECT_LT(Clock::now() - begin, kLong);
  EXPECT_THAT(chat_.screen(), HasSubstr("was not deleted"));
}

TEST(ChatBeginTest, CtrlCEndsAChatThatHasNotBegun) {
  FakeGateway gateway;
  gateway.Hang("CreateSession");
  ChatOnTerminal chat({"--gateway", gateway.address()});
  gateway.WaitForHanging(1);
  const auto begin = Clock::now();
  chat.Type("\x03");
  EXPECT_EQ(chat.Wait(), 128 + SIGINT);
  EXPECT_LT(Clock::now() - begin, kLong);
}

TEST_F(ChatTerminalTest, AnAnswerCannotSteerTheTerminal) {
  ASSERT_TRUE(chat_.WaitFor("> ")) << chat_.screen();
  const std::string text = "\x1b]0;title\x07 \u009b2J done";
  gateway_.set_script({.events = {Started("session-1", "t"), Text(0, text), Finished(text.size())},
                       .status = grpc::Status::OK});
  chat_.Type("x\n");
  ASSERT_TRUE(chat_.WaitFor(" done")) << chat_.screen();
  EXPECT_THAT(chat_.screen(), HasSubstr("\uFFFD]0;title\uFFFD \uFFFD2J done"));
  EXPECT_THAT(chat_.screen(), Not(HasSubstr("\x1b]0")));
}

}  // namespace
}  // namespace llava
