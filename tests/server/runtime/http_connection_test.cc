// How connections are served: answers whole and in pieces, and what becomes of them at the end.

#include "server/runtime/http_connection.h"

#include <gmock/gmock.h>

#include "tests/server/runtime/http_connection_harness.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST_F(HttpConnectionTest, AQuietStreamHasAHeartbeat) {
  options_.limits.heartbeat = milliseconds(50);
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/stream", ""));
  const auto stream = handler_.stream();
  stream->Begin({200, "text/event-stream", "first", {}, ": beat\n\n"});
  std::string read;
  for (int beats = 0; beats < 3; ++beats) {
    boost::asio::read_until(socket, boost::asio::dynamic_buffer(read), ": beat\n\n");
    read.erase(0, read.find(": beat\n\n") + 8);
  }
  stream->Write("last");
  stream->End();
  const std::string rest = read + Rest(socket);
  EXPECT_THAT(rest, AllOf(HasSubstr("4\r\nlast\r\n"), EndsWith("0\r\n\r\n")));
  // None without one, and none into the next answer.
  auto silent = Connect();
  Send(silent, Post("/stream", ""));
  const auto other = handler_.stream();
  other->Begin({200, "text/event-stream", "first"});
  std::this_thread::sleep_for(milliseconds(200));
  other->End();
  EXPECT_THAT(Rest(silent), EndsWith("\r\n\r\n5\r\nfirst\r\n0\r\n\r\n"));
}

TEST_F(HttpConnectionTest, BodiesComeWholeHoweverTheyAreCut) {
  StartServer();
  const std::string body(900, 'b');
  auto socket = Connect();
  for (const char c : Post("/echo", body)) Send(socket, std::string(1, c));
  EXPECT_THAT(Rest(socket), AllOf(StartsWith("HTTP/1.1 200"), EndsWith(body)));
  auto chunked = Connect();
  Send(chunked,
       "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: "
       "close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Mark: a trailer is no header\r\n\r\n");
  EXPECT_THAT(Rest(chunked), EndsWith("\r\n\r\nabcde"));
}

TEST_F(HttpConnectionTest, ManyRequestsAtOnceAreAnsweredInOrder) {
  StartServer();
  std::string all;
  for (int i = 0; i < 500; ++i) all += Post("/echo", absl::StrCat("<", i, ">"), "");
  auto socket = Connect();
  Send(socket, all + Post("/echo", "end"));
  const std::string text = Rest(socket);
  size_t at = 0;
  for (int i = 0; i < 500; ++i) {
    at = text.find(absl::StrCat("<", i, ">"), at);
    ASSERT_NE(at, std::string::npos) << i;
  }
}

TEST_F(HttpConnectionTest, PiecesGoOutAsTheyCome) {
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/stream", "x"));
  auto answer = handler_.stream();
  answer->Begin({200, "text/event-stream", "", {{"X-Mark", "m"}}});
  answer->Write("one");
  EXPECT_THAT(Until(socket, "3\r\none\r\n"),
              AllOf(HasSubstr("Transfer-Encoding: chunked"), HasSubstr("X-Mark: m")));
  answer->Write("two");
  EXPECT_EQ(Until(socket, "two\r\n"), "3\r\ntwo\r\n");
  answer->End();
  EXPECT_EQ(Rest(socket), "0\r\n\r\n");
  EXPECT_EQ(handler_.gone, 0);
}

TEST_F(HttpConnectionTest, ALateBeginningMayStillBecomeAnother) {
  options_.limits.heartbeat = std::chrono::minutes(10);
  StartServer();
  auto socket = Connect();
  const auto ask = [&] {
    Send(socket, Post("/stream", "", ""));
    return handler_.stream();
  };
  auto answer = ask();
  answer->BeginLate({200, "text/event-stream", "not this"});
  answer->BeginLate({200, "text/event-stream", "first "});
  answer->Write("text");
  answer->BeginLate({200, "text/event-stream", "too late"});
  answer->Fail({500, "text/x", "nor this"}, " and error");
  EXPECT_THAT(Until(socket, "0\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 200"),
                    EndsWith("\r\n\r\n6\r\nfirst \r\n4\r\ntext\r\na\r\n and error\r\n0\r\n\r\n")));
  answer = ask();
  answer->BeginLate({200, "text/event-stream", "first"});
  answer->Fail({503, "text/x", "error"}, "no piece");
  EXPECT_THAT(Until(socket, "error"), AllOf(StartsWith("HTTP/1.1 503"), Not(HasSubstr("first"))));
  answer = ask();
  answer->BeginLate({200, "text/event-stream", "empty"});
  answer->End();
  EXPECT_THAT(Until(socket, "0\r\n\r\n"), HasSubstr("\r\n5\r\nempty\r\n"));
}

TEST_F(HttpConnectionTest, ALateBeginningWaitsForOneHeartbeat) {
  options_.limits.heartbeat = milliseconds(50);
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/stream", ""));
  const auto answer = handler_.stream();
  answer->BeginLate({200, "text/event-stream", "first", {}, ": beat\n\n"});
  EXPECT_THAT(Until(socket, ": beat\n\n"), HasSubstr("first"));
  answer->Fail({500, "text/x", "no"}, "late error");
  EXPECT_THAT(Rest(socket), HasSubstr("late error"));
}

TEST_F(HttpConnectionTest, OldClientsGetPiecesWithoutChunks) {
  StartServer();
  auto socket = Connect();
  Send(socket, "POST /stream HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
  auto answer = handler_.stream();
  answer->Begin({200, "text/x", "one"});
  answer->End();
  EXPECT_THAT(Rest(socket), EndsWith("\r\n\r\none"));
}

TEST_F(HttpConnectionTest, AClientThatGoesIsNoticed) {
  StartServer();
  auto answer = [&] {
    auto socket = Connect();
    Send(socket, Post("/stream", ""));
    return handler_.stream();
  }();
  EXPECT_TRUE(Eventually([&] { return handler_.gone == 1; }));
  EXPECT_EQ(answer->Write("late"), 0u);
  bool told = false;
  answer->SetOnGone([&] { told = true; });
  EXPECT_TRUE(told);
  answer.reset();
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
}

TEST_F(HttpConnectionTest, AnAnswerThatIsForgottenCutsTheConnection) {
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/forgotten", ""));
  EXPECT_EQ(Rest(socket), "");
}

TEST_F(HttpConnectionTest, AsksForTheBodyWhenTheClientWaitsForThat) {
  StartServer();
  auto socket = Connect();
  Send(socket,
       "POST /echo HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: "
       "close\r\n\r\n");
  EXPECT_EQ(Until(socket, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  Send(socket, "ok");
  EXPECT_THAT(Rest(socket), EndsWith("\r\n\r\nok"));
}

TEST_F(HttpConnectionTest, TheServerEndsWithAnswersUnderWay) {
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/stream", ""));
  auto answer = handler_.stream();
  server_.reset();
  EXPECT_EQ(handler_.gone, 1);
  answer->Send({});  // to nobody
}

// What is left to do for a connection must not keep it open, nor must an answer that lives on.
TEST_F(HttpConnectionTest, AServerThatHasNoTimeToCloseConnectionsDropsThem) {
  for (const std::string path : {"/block", "/block_and_keep"}) {
    options_.threads = 2;  // one blocks, one ends
    StartServer();
    auto socket = Connect();
    Send(socket, Post(path, ""));
    handler_.blocked.acquire();
    std::thread end([this] { server_.reset(); });
    std::this_thread::sleep_for(milliseconds(2500));  // longer than it waits for connections
    handler_.unblock.release();
    end.join();
    const auto answer = path == "/block" ? nullptr : handler_.stream();
    EXPECT_EQ(handler_.gone, answer ? 1 : 0);
    Rest(socket);                  // ends when it is closed
    if (answer) answer->Send({});  // to nobody
  }
}

}  // namespace
}  // namespace llava
