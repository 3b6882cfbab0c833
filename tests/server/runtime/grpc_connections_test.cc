// What becomes of connections to the gRPC port of a process.

#include <grpcpp/impl/service_type.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <boost/asio.hpp>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <string>

#include "server/runtime/service_process.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

// A client that speaks HTTP/2 by hand, as far as it has to.
class BareClient {
 public:
  explicit BareClient(int port) {
    socket_.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)});
    const timeval patience{kSlowdown * 60, 0};
    setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
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
  void Send(const std::string& bytes) { asio::write(socket_, asio::buffer(bytes)); }
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
        std::exit(limit.rlim_cur == limit.rlim_max && process.files() == limit.rlim_cur ? 0 : 99);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace llava
