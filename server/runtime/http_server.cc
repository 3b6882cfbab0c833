#include "server/runtime/http_server.h"

#include <atomic>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <cstdint>
#include <future>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/runtime/body_budget.h"
#include "server/runtime/host_port.h"
#include "server/runtime/http_connection.h"
#include "server/runtime/http_transport.h"
#include "server/runtime/logging.h"
#include "server/runtime/mutex.h"

namespace llava {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

// After a fault of accept, e.g. no descriptors left.
constexpr std::chrono::milliseconds kAcceptPause{50};
constexpr std::chrono::seconds kCloseTimeout{2};

class PageHandler final : public HttpHandler {
 public:
  explicit PageHandler(std::map<std::string, HttpServer::Page> pages) : pages_(std::move(pages)) {}

  std::optional<HttpResponse> OnHead(const HttpRequest& head, uint64_t&) override {
    if (head.method != "GET" && head.method != "HEAD") return ErrorPage(405, "only GET and HEAD");
    if (pages_.contains(head.path)) return std::nullopt;
    std::string known;
    for (const auto& [path, page] : pages_)
      absl::StrAppend(&known, known.empty() ? "" : ", ", path);
    return ErrorPage(404, absl::StrCat("not found; there is: ", known));
  }

  void OnRequest(HttpRequest request, std::shared_ptr<HttpAnswer> answer) override {
    answer->Send(pages_.at(request.path)(request));
  }

 private:
  const std::map<std::string, HttpServer::Page> pages_;
};

// Work that was not done by the end holds connections, and these hold the context: it is dropped,
// as is what answers that outlive the server still post.
class Context : public asio::io_context {
 public:
  // Once no thread runs it, and no answer posts to it.
  void DropWork() { shutdown(); }
};

class BeastServer final : public HttpServer {
 public:
  BeastServer(const HttpServerOptions& options, HttpHandler& handler)
      : options_(options), handler_(handler) {}

  BeastServer(const HttpServerOptions& options, std::unique_ptr<HttpHandler> handler)
      : BeastServer(options, *handler) {
    own_handler_ = std::move(handler);
  }

  ~BeastServer() override {
    if (threads_.empty()) return;
    std::promise<void> closed;
    asio::post(acceptor_.get_executor(), [this, &closed] {
      closing_ = true;
      error_code ignored;
      acceptor_.close(ignored);
      retry_.cancel();
      for (const auto& [key, connection] : open_->all) {
        if (const auto alive = connection.lock()) alive->Shutdown();
      }
      closed.set_value();
    });
    closed.get_future().wait();
    const auto deadline = CondVar::Clock::now() + kCloseTimeout;
    while (open_->count > 0 && CondVar::Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    context_->stop();
    for (std::thread& thread : threads_) thread.join();
    // What a thread that was held up left to do: connections close, and tell their answers so.
    context_->restart();
    context_->poll();
    context_->DropWork();
  }

  absl::Status Bind() {
    if (options_.tls.any()) {
      if (const auto context = CurrentTlsContext(options_.tls); !context.ok()) {
        return context.status();
      }
    }
    error_code error;
    const auto address = asio::ip::make_address(
        options_.host == "localhost" ? "127.0.0.1" : BareHost(options_.host), error);
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", options_.host, "\" is not an IP address"));
    }
    const tcp::endpoint endpoint(address, static_cast<uint16_t>(options_.port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(absl::StrCat(
          "cannot listen on ", HostPort(options_.host, options_.port), ": ", error.message()));
    }
    port_ = acceptor_.local_endpoint().port();
    asio::post(acceptor_.get_executor(), [this] { Accept(); });
    for (int i = 0; i < options_.threads; ++i) {
      threads_.emplace_back([context = context_] { context->run(); });
    }
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  int connections() const override { return open_->count; }
  uint64_t body_bytes() const override { return bodies_->used(); }

 private:
  // Connections alive; outlives the server if an answer does.
  struct Open {
    std::atomic<int> count = 0;
    std::map<uint64_t, std::weak_ptr<HttpConnection>> all;  // oldest first; acceptor's strand only
  };
  // Held by a connection: keeps the executor, counts.
  struct Lifetime {
    Lifetime(std::shared_ptr<asio::io_context> c, std::shared_ptr<Open> o)
        : context(std::move(c)), open(std::move(o)) {
      ++open->count;
    }
    ~Lifetime() { --open->count; }
    const std::shared_ptr<asio::io_context> context;
    const std::shared_ptr<Open> open;
  };

  void Accept() {
    if (closing_) return;
    if (open_->count >= options_.limits.connections) {
      GiveWay();
      return AcceptLater();
    }
    acceptor_.async_accept(
        asio::make_strand(*context_),
        asio::bind_executor(acceptor_.get_executor(), [this](error_code error, tcp::socket socket) {
          OnAccept(error, std::move(socket));
        }));
  }

  // Ends some connections that wait for a next request, the oldest ones.
  void GiveWay() {
    int left = 1 + options_.limits.connections / 64;
    for (auto each = open_->all.begin(); each != open_->all.end() && left > 0; ++each) {
      const auto connection = each->second.lock();
      if (!connection || !connection->idle()) continue;
      connection->ShutdownIfIdle();
      --left;
    }
  }

  void AcceptLater() {
    retry_.expires_after(kAcceptPause);
    retry_.async_wait([this](error_code error) {
      if (!error) Accept();
    });
  }

  void OnAccept(error_code error, tcp::socket socket) {
    if (closing_) return;
    if (error && !std::exchange(accept_fails_, true)) {
      LogWarning("connections cannot be accepted; it is tried again and again",
                 {{"port", absl::StrCat(port_)}, {"error", error.message()}});
    }
    if (error) return AcceptLater();
    accept_fails_ = false;
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    auto transport = options_.tls.any()
                         ? MakeTlsTransport(std::move(socket), *CurrentTlsContext(options_.tls),
                                            options_.failed_handshakes)
                         : MakePlainTransport(std::move(socket));
    const bool certified = !options_.tls.authorities.empty();
    const HttpConnection::Parts parts{options_.limits, handler_, certified, bodies_};
    auto connection = std::make_shared<HttpConnection>(std::move(transport), parts,
                                                       std::make_shared<Lifetime>(context_, open_));
    if (open_->all.size() > 2 * static_cast<size_t>(open_->count) + 16) {
      std::erase_if(open_->all, [](const auto& entry) { return entry.second.expired(); });
    }
    open_->all[next_++] = connection;
    connection->Start();
    Accept();
  }

  const HttpServerOptions options_;
  std::unique_ptr<HttpHandler> own_handler_;
  HttpHandler& handler_;
  const std::shared_ptr<Context> context_ = std::make_shared<Context>();
  const asio::executor_work_guard<asio::io_context::executor_type> work_{context_->get_executor()};
  const std::shared_ptr<Open> open_ = std::make_shared<Open>();
  const std::shared_ptr<BodyBudget> bodies_ =
      std::make_shared<BodyBudget>(options_.limits.bodies_bytes);
  tcp::acceptor acceptor_{asio::make_strand(*context_)};
  asio::steady_timer retry_{acceptor_.get_executor()};
  // Of the acceptor's strand.
  bool closing_ = false;
  bool accept_fails_ = false;  // the last one did
  uint64_t next_ = 0;
  int port_ = 0;
  std::vector<std::thread> threads_;
};

absl::StatusOr<std::unique_ptr<HttpServer>> Bound(std::unique_ptr<BeastServer> server) {
  if (absl::Status status = server->Bind(); !status.ok()) return status;
  return server;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                              HttpHandler& handler) {
  return Bound(std::make_unique<BeastServer>(options, handler));
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                              std::map<std::string, Page> pages) {
  return Bound(
      std::make_unique<BeastServer>(options, std::make_unique<PageHandler>(std::move(pages))));
}

}  // namespace llava
