#include "server/runtime/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <boost/asio.hpp>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>

#include "server/runtime/logging.h"

namespace llava {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Sends `request` and returns all that comes back until the server closes.
std::string Exchange(int port, const std::string& request) {
  boost::asio::io_context context;
  boost::asio::ip::tcp::socket socket(context);
  socket.connect({boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)});
  boost::asio::write(socket, boost::asio::buffer(request));
  std::string answer;
  boost::system::error_code error;
  boost::asio::read(socket, boost::asio::dynamic_buffer(answer), error);
  return answer;
}

class HttpServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server =
        HttpServer::Start(HttpServerOptions{}, {{"/hello",
                                                 [](const HttpRequest&) {
                                                   return HttpResponse{200, "text/x", "hi"};
                                                 }},
                                                {"/ill", [](const HttpRequest&) {
                                                   return HttpResponse{503, "text/x", "no"};
                                                 }}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::string Get(const std::string& line) {
    return Exchange(server_->port(), line + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  }
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, ServesKnownPaths) {
  EXPECT_THAT(Get("GET /hello"),
              AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("text/x"), HasSubstr("\r\n\r\nhi")));
  EXPECT_THAT(Get("GET /hello?a=1"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("GET /ill"), StartsWith("HTTP/1.1 503"));
}

TEST_F(HttpServerTest, RefusesTheRest) {
  EXPECT_THAT(Get("GET /nothing"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Get("POST /hello"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Get("HEAD /hello"), AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("Content-Length: 2"),
                                        Not(HasSubstr("\r\n\r\nhi"))));
}

TEST_F(HttpServerTest, KeepsConnectionsAlive) {
  const std::string two = Exchange(server_->port(),
                                   "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
                                   "GET /ill HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(two, AllOf(HasSubstr(" 200 "), HasSubstr(" 503 ")));
}

// stderr, which others can read meanwhile.
class StandardError {
 public:
  StandardError() : before_(dup(2)) {
    EXPECT_EQ(pipe(ends_.data()), 0);
    dup2(ends_[1], 2);
    close(ends_[1]);
  }
  ~StandardError() {
    Restore();
    close(ends_[0]);
  }
  void Restore() {
    if (before_ < 0) return;
    dup2(before_, 2);
    close(std::exchange(before_, -1));
  }
  // Waits for the next one with `part`, or the end.
  std::string LineWith(const std::string& part) {
    std::string line;
    for (char c = 0; read(ends_[0], &c, 1) == 1;) {
      if (c != '\n') {
        line += c;
      } else if (line.find(part) != std::string::npos) {
        return line;
      } else {
        line.clear();
      }
    }
    return "";
  }

 private:
  int before_;
  std::array<int, 2> ends_{};
};

TEST_F(HttpServerTest, TellsOnceOfASeriesOfConnectionsThatCannotBeAccepted) {
  InitLogging({"test", "info", "text"});
  boost::asio::io_context context;
  boost::asio::ip::tcp::socket socket(context, boost::asio::ip::tcp::v4());
  StandardError told;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;  // what is open stays so
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  socket.connect(
      {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(server_->port())});
  EXPECT_THAT(told.LineWith("cannot be accepted"), HasSubstr("Too many open files"));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // for tries that are not told
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  boost::asio::write(socket,
                     boost::asio::buffer("GET /hello HTTP/1.1\r\nConnection: close\r\n\r\n"));
  std::string answer;
  boost::system::error_code error;
  boost::asio::read(socket, boost::asio::dynamic_buffer(answer), error);
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  told.Restore();  // the end of the pipe
  EXPECT_EQ(told.LineWith("cannot be accepted"), "");
}

TEST_F(HttpServerTest, SaysWhenThePortIsTaken) {
  HttpServerOptions options;
  options.port = server_->port();
  const auto second = HttpServer::Start(options, std::map<std::string, HttpServer::Page>{});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  options.host = "no such host";
  EXPECT_EQ(HttpServer::Start(options, std::map<std::string, HttpServer::Page>{}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace llava
