#include "server/runtime/grpc_listener.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/host_port.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

namespace ip = boost::asio::ip;

// Between two looks at whether the thread shall end.
constexpr int kAtOnce = 256;
// After a fault of accept, e.g. no descriptors left.
constexpr int kAcceptPauseMs = 50;
// What is told again and again is told so often.
constexpr std::chrono::minutes kTellPause{1};
// What nobody has acknowledged for so long has no reader: a machine that is gone, a window at zero.
constexpr int kUnreadMs = 60'000;
// So that a rush of connections beyond the bound costs no look through all others each.
constexpr std::chrono::milliseconds kCountPause{100};

// Once a minute.
bool MayTell(std::chrono::steady_clock::time_point& told) {
  const auto now = std::chrono::steady_clock::now();
  if (told != std::chrono::steady_clock::time_point{} && now - told < kTellPause) return false;
  told = now;
  return true;
}

// 0: `descriptor` is not open.
ino_t FileOf(int descriptor) {
  struct stat info {};
  return fstat(descriptor, &info) == 0 ? info.st_ino : 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcListener>> GrpcListener::Bind(const Options& options) {
  boost::system::error_code error;
  const bool local = options.host == "localhost";
  const auto address = ip::make_address(local ? "127.0.0.1" : BareHost(options.host), error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat("\"", options.host, "\" is not an IP address"));
  }
  std::unique_ptr<GrpcListener> listener(new GrpcListener(options));
  absl::Status status;
  if (address.is_unspecified()) {
    status = listener->Listen("::");
    // This machine may have no IPv6.
    if (!status.ok() && address.is_v4()) status = listener->Listen("0.0.0.0");
  } else {
    status = listener->Listen(address.to_string());
  }
  if (!status.ok()) return status;
  if (local) listener->Listen("::1").IgnoreError();
  return listener;
}

GrpcListener::GrpcListener(const Options& options)
    : options_(options), stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

GrpcListener::~GrpcListener() {
  Stop();
  close(stop_);
}

void GrpcListener::Stop() {
  if (thread_.joinable()) {
    eventfd_write(stop_, 1);
    thread_.join();
  }
  for (const int socket : sockets_) close(socket);
  sockets_.clear();
}

absl::Status GrpcListener::Listen(const std::string& address) {
  const int port = port_ > 0 ? port_ : options_.port;
  ip::tcp::endpoint at(ip::make_address(address), static_cast<uint16_t>(port));
  const int made = socket(at.protocol().family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int on = 1, off = 0;
  socklen_t size = static_cast<socklen_t>(at.size());
  bool done = made >= 0 && setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0;
  if (done && at.protocol() == ip::tcp::v6()) {
    done = setsockopt(made, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0;
  }
  done = done && bind(made, at.data(), size) == 0 && listen(made, SOMAXCONN) == 0 &&
         getsockname(made, at.data(), &size) == 0;
  if (!done) {
    const int error = errno;
    if (made >= 0) close(made);
    return absl::UnavailableError(absl::StrCat("cannot listen on ", HostPort(options_.host, port),
                                               ": ", std::strerror(error)));
  }
  port_ = at.port();
  sockets_.push_back(made);
  return absl::OkStatus();
}

void GrpcListener::AddTo(grpc::ServerBuilder& builder,
                         std::shared_ptr<grpc::ServerCredentials> credentials) {
  using Builder = grpc::ServerBuilder::experimental_type;
  acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
      Builder::ExternalConnectionType::FROM_FD, std::move(credentials));
}

void GrpcListener::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void GrpcListener::Loop() {
  std::vector<pollfd> waits = {{stop_, POLLIN, 0}};
  for (const int socket : sockets_) waits.push_back({socket, POLLIN, 0});
  while (true) {
    poll(waits.data(), waits.size(), -1);
    if (waits[0].revents != 0) return;
    bool accepts = true;
    for (size_t i = 1; i < waits.size(); ++i) {
      if (waits[i].revents != 0) accepts = AcceptAll(waits[i].fd) && accepts;
    }
    if (!accepts) poll(waits.data(), 1, kAcceptPauseMs);
  }
}

bool GrpcListener::AcceptAll(int socket) {
  for (int i = 0; i < kAtOnce; ++i) {
    const int made = accept4(socket, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (made < 0) {
      if (errno == EAGAIN) return true;
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (MayTell(told_fault_)) {
        LogWarning("connections cannot be accepted; it is tried again and again",
                   {{"port", absl::StrCat(port_)}, {"error", std::strerror(errno)}});
      }
      return false;
    }
    // gRPC writes a line of its own for each that was reset before it was accepted.
    sockaddr_storage peer;
    socklen_t size = sizeof peer;
    if (getpeername(made, reinterpret_cast<sockaddr*>(&peer), &size) != 0) {
      close(made);
      continue;
    }
    if (IsFull()) {
      close(made);
      if (options_.refused != nullptr) options_.refused->Increment();
      if (MayTell(told_refusal_)) {
        LogWarning(
            "gRPC connections are refused: there are as many as may be",
            {{"port", absl::StrCat(port_)}, {"connections", absl::StrCat(options_.connections)}});
      }
      continue;
    }
    const int on = 1;
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(made, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUnreadMs, sizeof kUnreadMs);
    open_[made] = FileOf(made);
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.listener_fd = socket;
    connection.fd = made;
    acceptor_->HandleNewConnection(&connection);
  }
  return true;
}

bool GrpcListener::IsFull() {
  const auto most = static_cast<size_t>(options_.connections);
  if (open_.size() < most) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now - counted_ >= kCountPause) {
    counted_ = now;
    std::erase_if(open_, [](const auto& each) { return FileOf(each.first) != each.second; });
  }
  return open_.size() >= most;
}

}  // namespace llava
