// Clients that are slow, greedy, silent or mean.

#include <gmock/gmock.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "tests/server/runtime/http_connection_harness.h"
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
using HttpLimitsTest = HttpConnectionTest;

TEST_F(HttpLimitsTest, RefusesBeforeTheBodyAndTellsWhy) {
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

// Of a body in chunks the parser itself bounds only what lies between these.
TEST_F(HttpLimitsTest, LinesWithoutEndAreRefused) {
  StartServer();
  const std::string digits(40'000, '1'), field = "X: " + std::string(40'000, 'x');
  for (const std::string& line : {digits, "3;" + digits, "3\r\nabc\r\n0\r\n" + field}) {
    auto socket = Connect();
    Send(socket, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + line);
    EXPECT_THAT(Rest(socket), StartsWith("HTTP/1.1 431")) << line.substr(0, 20);
  }
}

TEST_F(HttpLimitsTest, WaitsForNobodyForEver) {
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
  options_.limits.head_timeout = kSlowdown * std::chrono::seconds(5);  // and until the first byte
  StartServer();
  auto idle = Connect(), head = Connect();
  Send(head, "GET /echo HTTP/1.1\r\n");
  EXPECT_THAT(Rest(head), StartsWith("HTTP/1.1 408"));
  EXPECT_EQ(Rest(idle), "");
}

TEST_F(HttpLimitsTest, AReaderThatStopsIsCut) {
  options_.limits.write_timeout = milliseconds(200);
  StartServer();
  auto socket = Connect();
  Send(socket, Post("/stream", ""));
  auto answer = handler_.stream();
  answer->Begin({200, "text/x", std::string(100 << 20, 'x')});
  EXPECT_TRUE(Eventually([&] { return handler_.gone == 1; }));
}

TEST_F(HttpLimitsTest, AReaderThatIsSlowIsNot) {
  using Clock = std::chrono::steady_clock;
  options_.limits.write_timeout = kSlowdown * milliseconds(1000);
  constexpr size_t kBody = 64u << 20;
  std::string piece(32 << 10, '\0');
  bool proved = false;
  for (int tries = 0; !proved && tries < 10; ++tries) {
    StartServer();
    handler_.gone = 0;
    auto socket = Connect(16 << 10);
    Send(socket, Post("/stream", ""));
    const auto answer = handler_.stream();
    auto last = Clock::now();
    const auto end = last + 3 * options_.limits.write_timeout;
    answer->Begin({200, "text/x", ""});
    answer->Write(std::string(kBody, 'x'));
    answer->End();
    size_t read = 0, slowly = 0;
    boost::system::error_code error;
    Clock::duration pause{0};
    while (!error) {
      read += socket.read_some(boost::asio::buffer(piece), error);
      const auto now = Clock::now();
      pause = std::max(pause, now - std::exchange(last, now));
      if (now >= end) continue;
      slowly = read;
      // So slowly that the system takes no more of the server within one write_timeout.
      std::this_thread::sleep_for(kSlowdown * milliseconds(30));
    }
    // A reader that stood still so long, as the machine had it, shows nothing if it was cut.
    if (read <= kBody && pause > options_.limits.write_timeout / 2) continue;
    proved = true;
    EXPECT_EQ(error, boost::asio::error::eof) << error.message() << " after " << read << " bytes";
    EXPECT_LT(slowly, kBody / 2) << "so slowly that it was not all out before";
    EXPECT_GT(read, kBody);
    EXPECT_EQ(handler_.gone, 0);
  }
  EXPECT_TRUE(proved) << "it was cut each time, and had stood still each time";
}

// Many who send large bodies slowly must not fill the memory, nor keep out who asks little.
TEST_F(HttpLimitsTest, BodiesShareABound) {
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
TEST_F(HttpLimitsTest, RefusesRequestsThatCanBeReadInTwoWays) {
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
  for (const std::string coding :
       {"gzip", "chunked, identity", "xchunked", "identity", "gzip, chunked", "chunked, chunked",
        "identity, chunked", "gzip\r\nTransfer-Encoding: chunked"}) {
    EXPECT_THAT(answer(host + "Transfer-Encoding: " + coding + "\r\n"),
                AllOf(StartsWith("HTTP/1.1 501"), Not(HasSubstr("403"))))
        << coding;
  }
  EXPECT_THAT(answer(host + "Connection: close\r\nTransfer-Encoding: \t Chunked \t\r\n"),
              AllOf(StartsWith("HTTP/1.1 200"), EndsWith("\r\n\r\nabc")));
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
}

// Answers are not piled up for a client that sends requests and reads nothing.
TEST_F(HttpLimitsTest, TheNextRequestWaitsUntilTheAnswerIsOut) {
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

TEST_F(HttpLimitsTest, IdleConnectionsGiveWayToNewOnes) {
  options_.limits.connections = 2;
  options_.limits.head_timeout = options_.limits.idle_timeout = std::chrono::minutes(10);
  StartServer();
  auto busy = Connect();
  Send(busy, Post("/block_and_keep", ""));
  handler_.blocked.acquire();
  // The server finds them there at once: it does not wait for what would still come of the third.
  auto idle = Connect(), third = Connect();
  Send(third, Post("/echo", "x"));
  handler_.unblock.release();
  const auto stream = handler_.stream();
  EXPECT_THAT(Rest(third), StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(Rest(idle), "");
  stream->Send({200, "text/x", "still here"});
  EXPECT_THAT(Rest(busy), EndsWith("still here"));
}

TEST_F(HttpLimitsTest, WhatAReaderLeavesWaitingIsTold) {
  options_.limits.write_timeout = std::chrono::minutes(10);
  StartServer();
  auto socket = Connect(16 << 10);
  Send(socket, Post("/stream", ""));
  auto answer = handler_.stream();
  answer->Begin({200, "text/x", "begins"});
  Until(socket, "begins");
  EXPECT_LT(answer->Write("x"), 100u);
  // Faster than the server takes them, and some of them on their way meanwhile: none is forgotten.
  size_t waiting = 0;
  for (int i = 0; i < 100; ++i) waiting = answer->Write(std::string(1 << 20, 'x'));
  EXPECT_GT(waiting, 85u << 20) << "the rest is what the system holds";
  EXPECT_LT(waiting, 101u << 20);
}

}  // namespace
}  // namespace llava
