// What becomes of connections to the gRPC port of a process.

#include <grpcpp/impl/service_type.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <boost/asio.hpp>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/runtime/service_process.h"
#include "tests/support/eventually.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

// A client that speaks HTTP/2 by hand, as far as it has to.
class BareClient {
 public:
  explicit BareClient(int port, bool speaks = true) {
    socket_.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)});
    const timeval patience{kSlowdown * 60, 0};
    setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (!speaks) return;
    Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    Send(std::string("\0\0\0\4\0\0\0\0\0", 9));  // no settings
  }

  enum class Event { kPing, kClosed, kSilence };
  // Skips all other frames, and answers a ping if it is told so.
  Event Next(bool answers) {
    while (true) {
      unsigned char head[9];
      if (const auto event = Read(head, sizeof head); event != Event::kPing) return event;
      std::string body((head[0] << 16) + (head[1] << 8) + head[2], '\0');
      if (const auto event = Read(body.data(), body.size()); event != Event::kPing) return event;
      if (head[3] != 6 || (head[4] & 1) != 0) continue;
      if (answers) Send(std::string("\0\0\x8\x6\1\0\0\0\0", 9) + body);
      return Event::kPing;
    }
  }

 private:
  void Send(const std::string& bytes) {
    boost::system::error_code ignored;  // what became of it is read
    asio::write(socket_, asio::buffer(bytes), ignored);
  }
  // kPing: it is all there.
  Event Read(void* to, size_t size) {
    for (size_t have = 0; have < size;) {
      const ssize_t got =
          recv(socket_.native_handle(), static_cast<char*>(to) + have, size - have, 0);
      if (got < 0 && errno == EAGAIN) return Event::kSilence;
      if (got <= 0) return Event::kClosed;
      have += static_cast<size_t>(got);
    }
    return Event::kPing;
  }

  asio::io_context context_;
  asio::ip::tcp::socket socket_{context_};
};

int ServeAClientThatFallsSilent() {
  ProcessOptions options;
  options.log_level = "error";
  options.ping_after = milliseconds(50);
  options.ping_timeout = kSlowdown * milliseconds(2000);
  Metrics metrics("probe");
  ServiceProcess process("llava-probe", options, metrics);
  grpc::Service none;
  if (const int code = process.Start({&none}, {}); code != 0) return code;
  BareClient client(process.port());
  // Its kernel takes bytes all along, and it never makes a call.
  for (int i = 0; i < 5; ++i) {
    if (client.Next(/*answers=*/true) != BareClient::Event::kPing) return 98;
  }
  BareClient::Event event = BareClient::Event::kPing;
  while (event == BareClient::Event::kPing) event = client.Next(/*answers=*/false);
  return event == BareClient::Event::kClosed ? 0 : 99;
}

TEST(GrpcConnectionsDeathTest, AClientThatAnswersNoPingIsCutOff) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(ServeAClientThatFallsSilent()), ::testing::ExitedWithCode(0), "");
}

int RefuseWhoComesBeyondTheBound() {
  ProcessOptions options;
  options.log_level = "error";
  options.ping_after = milliseconds(50);
  options.max_connections = 3;
  Metrics metrics("probe");
  ServiceProcess process("llava-probe", options, metrics);
  grpc::Service none;
  if (const int code = process.Start({&none}, {}); code != 0) return code;
  const auto is_let_in = [](BareClient& client) {
    return client.Next(/*answers=*/true) == BareClient::Event::kPing;
  };
  std::vector<std::unique_ptr<BareClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<BareClient>(process.port()));
    if (!is_let_in(*clients.back())) return 98;
  }
  BareClient refused(process.port());
  if (refused.Next(/*answers=*/true) != BareClient::Event::kClosed) return 97;
  const std::string page = process.pages({}).at("/metrics")(HttpRequest()).body;
  if (page.find("\nllava_grpc_refused_connections_total 1\n") == std::string::npos) return 96;
  if (!is_let_in(*clients[1])) return 95;
  clients.erase(clients.begin());
  const bool again = Eventually([&] {
    BareClient next(process.port());
    return is_let_in(next);
  });
  return again ? 0 : 94;
}

TEST(GrpcConnectionsDeathTest, WhoComesBeyondTheBoundIsRefusedUntilSomebodyGoes) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(RefuseWhoComesBeyondTheBound()), ::testing::ExitedWithCode(0), "");
}

// gRPC's own listener never accepts again after that.
int RunOutOfDescriptors() {
  ProcessOptions options;
  options.log_level = "error";
  options.ping_after = milliseconds(50);
  Metrics metrics("probe");
  ServiceProcess process("llava-probe", options, metrics);
  grpc::Service none;
  if (const int code = process.Start({&none}, {}); code != 0) return code;
  rlimit usual{};
  getrlimit(RLIMIT_NOFILE, &usual);
  const rlimit low{200, usual.rlim_max};
  setrlimit(RLIMIT_NOFILE, &low);
  asio::io_context context;
  asio::ip::tcp::socket stranger(context, asio::ip::tcp::v4());
  std::vector<int> files;
  for (int file = dup(2); file >= 0; file = dup(2)) files.push_back(file);
  stranger.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(process.port())});
  std::this_thread::sleep_for(milliseconds(500));  // it is accepted, in vain
  for (const int file : files) close(file);
  setrlimit(RLIMIT_NOFILE, &usual);
  BareClient client(process.port());
  return client.Next(/*answers=*/true) == BareClient::Event::kPing ? 0 : 99;
}

TEST(GrpcConnectionsDeathTest, ThePortOutlivesAWantOfDescriptors) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(RunOutOfDescriptors()), ::testing::ExitedWithCode(0), "");
}

int ServeAClientThatSaysNothing() {
  ProcessOptions options;
  options.log_level = "error";
  options.handshake_timeout = milliseconds(100);
  Metrics metrics("probe");
  ServiceProcess process("llava-probe", options, metrics);
  grpc::Service none;
  if (const int code = process.Start({&none}, {}); code != 0) return code;
  BareClient client(process.port(), /*speaks=*/false);
  return client.Next(/*answers=*/false) == BareClient::Event::kClosed ? 0 : 99;
}

TEST(GrpcConnectionsDeathTest, AClientThatSaysNothingIsCutOff) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(ServeAClientThatSaysNothing()), ::testing::ExitedWithCode(0), "");
}

TEST(GrpcConnectionsDeathTest, AnyProcessMayOpenAsManyFilesAsTheSystemAllows) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        rlimit limit{};
        getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = 64;
        setrlimit(RLIMIT_NOFILE, &limit);
        Metrics metrics("probe");
        const ServiceProcess process("llava-probe", {}, metrics);
        getrlimit(RLIMIT_NOFILE, &limit);
        std::exit(limit.rlim_cur == limit.rlim_max ? 0 : 99);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace llava
