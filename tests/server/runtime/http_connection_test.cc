// How connections are served: answers in pieces, clients that go, are slow, or send too much.

#include "server/runtime/http_connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio.hpp>
#include <chrono>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/runtime/http_server.h"
#include "tests/support/eventually.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using tcp = boost::asio::ip::tcp;

// /echo answers with the body; /stream is left to the test.
class Handler : public HttpHandler {
 public:
  std::optional<HttpResponse> OnHead(const HttpRequest& head, uint64_t& body_limit) override {
    if (head.path == "/forbidden") return HttpResponse{403, "text/x", "no\n"};
    if (head.path == "/echo") body_limit = 1000;
    if (head.path == "/large") body_limit = 1u << 20;
    return std::nullopt;
  }
  void OnRequest(HttpRequest request, std::shared_ptr<HttpAnswer> answer) override {
    if (request.path == "/echo") return answer->Send({200, "text/x", request.body});
    if (request.path == "/large") {
      return answer->Send({200, "text/x", absl::StrCat(request.body.size())});
    }
    if (request.path == "/page") {
      ++pages;
      return answer->Send({200, "text/x", std::string(1u << 20, 'p')});
    }
    if (request.path == "/forgotten") return;
    if (request.path == "/block" || request.path == "/block_and_keep") {  // a thread of the server
      blocked.release();
      unblock.acquire();
      if (request.path == "/block") return answer->Send({200, "text/x", ""});
    }
    answer->SetOnGone([this] { ++gone; });
    std::lock_guard lock(mutex_);
    stream_ = std::move(answer);
  }
  std::shared_ptr<HttpAnswer> stream() {
    while (true) {
      {
        std::lock_guard lock(mutex_);
        if (stream_) return std::move(stream_);
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
  }

  std::atomic<int> gone = 0, pages = 0;
  std::binary_semaphore blocked{0}, unblock{0};

 private:
  std::mutex mutex_;
  std::shared_ptr<HttpAnswer> stream_;
};

class HttpConnectionTest : public testing::Test {
 protected:
  void StartServer() {
    auto server = HttpServer::Start(options_, handler_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  tcp::socket Connect() {
    tcp::socket socket(context_);
    socket.connect(
        {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(server_->port())});
    return socket;
  }
  static void Send(tcp::socket& socket, const std::string& text) {
    boost::system::error_code ignored;
    boost::asio::write(socket, boost::asio::buffer(text), ignored);
  }
  // All that comes until the server closes.
  static std::string Rest(tcp::socket& socket) {
    std::string text;
    boost::system::error_code error;
    boost::asio::read(socket, boost::asio::dynamic_buffer(text), error);
    return text;
  }
  static std::string Until(tcp::socket& socket, const std::string& mark) {
    std::string text;
    boost::system::error_code error;
    boost::asio::read_until(socket, boost::asio::dynamic_buffer(text), mark, error);
    return text;
  }
  // All that comes back to a client whose bytes are there before the server looks at it, so that no
  // limit runs out before they are.
  std::string AnswerTo(const std::string& bytes) {
    auto blocking = Connect();
    Send(blocking, Post("/block", ""));
    handler_.blocked.acquire();
    auto socket = Connect();
    Send(socket, bytes);
    handler_.unblock.release();
    return Rest(socket);
  }
  static std::string Post(const std::string& path, const std::string& body,
                          const std::string& more = "Connection: close\r\n") {
    return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: x\r\nContent-Length: ", body.size(),
                        "\r\n", more, "\r\n", body);
  }

  Handler handler_;
  HttpServerOptions options_;
  boost::asio::io_context context_;
  std::unique_ptr<HttpServer> server_;
};

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
       "close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
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

TEST_F(HttpConnectionTest, RefusesBeforeTheBodyAndTellsWhy) {
  StartServer();
  auto forbidden = Connect();
  Send(forbidden,
       absl::StrCat("POST /forbidden HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n",
                    std::string(400000, 'x')));
  EXPECT_THAT(Rest(forbidden), AllOf(StartsWith("HTTP/1.1 403"), EndsWith("no\n")));
  auto large = Connect();
  Send(large, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
  EXPECT_THAT(Rest(large), AllOf(StartsWith("HTTP/1.1 413"), HasSubstr("1001")));
  auto chunked = Connect();
  Send(chunked, absl::StrCat("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
                             "7d0\r\n", std::string(2000, 'x'), "\r\n0\r\n\r\n"));
  EXPECT_THAT(Rest(chunked), StartsWith("HTTP/1.1 413"));
  auto head = Connect();
  Send(head, absl::StrCat("GET /echo HTTP/1.1\r\nX: ", std::string(20000, 'x'), "\r\n\r\n"));
  EXPECT_THAT(Rest(head), StartsWith("HTTP/1.1 431"));
  auto nonsense = Connect();
  Send(nonsense, "nonsense\r\n\r\n");
  EXPECT_THAT(Rest(nonsense), StartsWith("HTTP/1.1 400"));
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
}

TEST_F(HttpConnectionTest, WaitsForNobodyForEver) {
  const auto limits = options_.limits;
  const std::string whole = Post("/echo", "abc", "");
  options_.limits.body_timeout = milliseconds(100);
  StartServer();
  EXPECT_THAT(AnswerTo("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"),
              StartsWith("HTTP/1.1 408"));
  options_.limits = limits;
  options_.limits.idle_timeout = milliseconds(100);
  StartServer();
  EXPECT_THAT(AnswerTo(whole), EndsWith("abc")) << "and nothing behind it";
  options_.limits = limits;
  options_.limits.head_timeout = std::chrono::seconds(5);  // and until the first byte
  StartServer();
  auto idle = Connect(), head = Connect();
  Send(head, "GET /echo HTTP/1.1\r\n");
  EXPECT_THAT(Rest(head), StartsWith("HTTP/1.1 408"));
  EXPECT_EQ(Rest(idle), "");
}

TEST_F(HttpConnectionTest, WhatAReaderLeavesWaitingIsTold) {
  options_.limits.write_timeout = std::chrono::minutes(10);
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/stream", ""));
  auto answer = handler_.stream();
  answer->Begin({200, "text/x", ""});
  size_t waiting = 0;
  for (int i = 0; i < 100; ++i) waiting = answer->Write(std::string(1 << 20, 'x'));
  EXPECT_GT(waiting, 50u << 20);
}

TEST_F(HttpConnectionTest, AReaderThatStopsIsCut) {
  options_.limits.write_timeout = milliseconds(200);
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/stream", ""));
  auto answer = handler_.stream();
  answer->Begin({200, "text/x", std::string(100 << 20, 'x')});
  EXPECT_TRUE(Eventually([&] { return handler_.gone == 1; }));
}

TEST_F(HttpConnectionTest, AReaderThatIsSlowIsNot) {
  options_.limits.write_timeout = kSlowdown * milliseconds(1000);
  StartServer();
  constexpr size_t kBody = 64u << 20;
  tcp::socket socket(context_);
  socket.open(tcp::v4());
  socket.set_option(boost::asio::socket_base::receive_buffer_size(16 << 10));
  socket.connect(
      {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(server_->port())});
  Send(socket, Post("/stream", ""));
  const auto answer = handler_.stream();
  answer->Begin({200, "text/x", ""});
  answer->Write(std::string(kBody, 'x'));
  answer->End();
  std::string piece(32 << 10, '\0');
  size_t read = 0;
  const auto end = std::chrono::steady_clock::now() + 3 * options_.limits.write_timeout;
  while (std::chrono::steady_clock::now() < end) {
    boost::system::error_code error;
    read += socket.read_some(boost::asio::buffer(piece), error);
    ASSERT_FALSE(error) << error.message() << " after " << read << " bytes";
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_LT(read, kBody / 2) << "so slowly that it was not all out before";
  read += Rest(socket).size();
  EXPECT_GT(read, kBody);
  EXPECT_EQ(handler_.gone, 0);
}

// Many who send large bodies slowly must not fill the memory, nor keep out who asks little.
TEST_F(HttpConnectionTest, BodiesShareABound) {
  options_.limits.bodies_bytes = 100'000;
  StartServer();
  const auto begin = [](size_t size) {
    return absl::StrCat("POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: ", size,
                        "\r\nConnection: close\r\n\r\n");
  };
  std::vector<tcp::socket> slow;
  for (int i = 0; i < 2; ++i) {
    slow.push_back(Connect());
    Send(slow.back(), begin(60'000) + std::string(59'999, 'x'));
  }
  // 16 KiB of each are free.
  ASSERT_TRUE(Eventually([&] { return server_->body_bytes() == 2 * (59'999 - 16'384); }));
  auto late = Connect();
  Send(late, begin(60'000) + std::string(60'000, 'x'));
  const std::string refusal = Rest(late);
  EXPECT_THAT(refusal, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(refusal, AllOf(HasSubstr("Retry-After: 1\r\n"), HasSubstr("try again")));
  auto small = Connect();
  Send(small, begin(10'000) + std::string(10'000, 'x'));
  EXPECT_THAT(Rest(small), AllOf(StartsWith("HTTP/1.1 200"), EndsWith("10000")));
  for (tcp::socket& each : slow) {
    Send(each, "x");
    EXPECT_THAT(Rest(each), EndsWith("60000"));
  }
  // Also what a client that went away had sent is given back.
  for (int i = 0; i < 2; ++i) {
    auto gone = Connect();
    Send(gone, begin(60'000) + std::string(59'999, 'x'));
  }
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
  EXPECT_EQ(server_->body_bytes(), 0u);
}

// A body that two readers take for different things could hide a request from one of them.
TEST_F(HttpConnectionTest, RefusesRequestsThatCanBeReadInTwoWays) {
  StartServer();
  const auto answer = [&](const std::string& fields) {
    auto socket = Connect();
    Send(socket, absl::StrCat("POST /echo HTTP/1.1\r\n", fields,
                              "\r\n3\r\nabc\r\n0\r\n\r\nGET /forbidden HTTP/1.1\r\n\r\n"));
    return Rest(socket);
  };
  const std::string host = "Host: x\r\n", chunked = "Transfer-Encoding: chunked\r\n";
  for (const std::string& fields :
       {host + "Content-Length: 5\r\n" + chunked, host + chunked + "Content-Length: 5\r\n",
        host + "Content-Length: 5\r\nContent-Length: 6\r\n", host + chunked + chunked,
        host + "Content-Length: +5\r\n", host + "Content-Length: 5, 5\r\n",
        host + "Transfer-Encoding : chunked\r\n", host + "Host: y\r\n" + chunked,
        host + "A: b\r\n\t c\rContent-Length: 3\r\n", host + "A\0b: c\r\n"}) {
    EXPECT_THAT(answer(fields), AllOf(StartsWith("HTTP/1.1 400"), Not(HasSubstr("403")))) << fields;
  }
  for (const std::string coding : {"gzip", "chunked, identity", "xchunked", "identity"}) {
    EXPECT_THAT(answer(host + "Transfer-Encoding: " + coding + "\r\n"),
                AllOf(StartsWith("HTTP/1.1 501"), Not(HasSubstr("403"))))
        << coding;
  }
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
}

// Answers are not piled up for a client that sends requests and reads nothing.
TEST_F(HttpConnectionTest, TheNextRequestWaitsUntilTheAnswerIsOut) {
  options_.limits.write_timeout = milliseconds(500);
  StartServer();
  auto socket = Connect();
  socket.set_option(boost::asio::socket_base::receive_buffer_size(4096));
  std::string many;
  for (int i = 0; i < 1000; ++i) many += "GET /page HTTP/1.1\r\nHost: x\r\n\r\n";
  Send(socket, many);
  EXPECT_TRUE(Eventually([&] { return handler_.pages > 0; }));
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; })) << "cut by write_timeout";
  EXPECT_LT(handler_.pages, 100) << "each has 1 MiB";
}

TEST_F(HttpConnectionTest, IdleConnectionsGiveWayToNewOnes) {
  options_.limits.connections = 2;
  options_.limits.head_timeout = options_.limits.idle_timeout = std::chrono::minutes(10);
  StartServer();
  auto busy = Connect();
  Send(busy, Post("/stream", ""));
  const auto stream = handler_.stream();
  auto idle = Connect();
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 2; }));
  auto third = Connect();
  Send(third, Post("/echo", "x"));
  EXPECT_THAT(Rest(third), StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(Rest(idle), "");
  stream->Send({200, "text/x", "still here"});
  EXPECT_THAT(Rest(busy), EndsWith("still here"));
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
