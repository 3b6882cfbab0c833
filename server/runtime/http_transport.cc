#include "server/runtime/http_transport.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <boost/asio/ssl.hpp>
#include <utility>

namespace llava {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

size_t QueueOf(tcp::socket& socket) {
  int bytes = 0;
  return ioctl(socket.native_handle(), SIOCOUTQ, &bytes) == 0 ? static_cast<size_t>(bytes) : 0;
}

class PlainTransport final : public HttpTransport {
 public:
  explicit PlainTransport(tcp::socket socket) : socket_(std::move(socket)) {}

  void Handshake(Done done) override { done({}, 0); }
  void Read(asio::mutable_buffer buffer, Done done) override {
    socket_.async_read_some(buffer, std::move(done));
  }
  void Write(asio::const_buffer buffer, Done done) override {
    socket_.async_write_some(buffer, std::move(done));
  }
  void ShutdownSend() override {
    error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
  }
  void Close() override {
    error_code ignored;
    socket_.close(ignored);
  }
  size_t Underway() override { return QueueOf(socket_); }
  bool certified() override { return false; }
  tcp::socket& socket() override { return socket_; }

 private:
  tcp::socket socket_;
};

class TlsTransport final : public HttpTransport {
 public:
  TlsTransport(tcp::socket socket, std::shared_ptr<TlsContext> context, prometheus::Counter* failed)
      : context_(std::move(context)), stream_(std::move(socket), *context_), failed_(failed) {}

  void Handshake(Done done) override {
    stream_.async_handshake(asio::ssl::stream_base::server,
                            [done = std::move(done), failed = failed_](error_code error) {
                              if (error && failed != nullptr) failed->Increment();
                              done(error, 0);
                            });
  }
  void Read(asio::mutable_buffer buffer, Done done) override {
    stream_.async_read_some(buffer, std::move(done));
  }
  void Write(asio::const_buffer buffer, Done done) override {
    stream_.async_write_some(buffer, std::move(done));
  }
  void ShutdownSend() override {
    // The answer says its length; who asked for it does not wait for a close_notify.
    error_code ignored;
    stream_.next_layer().shutdown(tcp::socket::shutdown_send, ignored);
  }
  void Close() override {
    error_code ignored;
    stream_.next_layer().close(ignored);
  }
  size_t Underway() override { return QueueOf(stream_.next_layer()); }
  bool certified() override {
    X509* certificate = SSL_get1_peer_certificate(stream_.native_handle());
    if (certificate == nullptr) return false;
    X509_free(certificate);
    return SSL_get_verify_result(stream_.native_handle()) == X509_V_OK;
  }
  tcp::socket& socket() override { return stream_.next_layer(); }

 private:
  const std::shared_ptr<TlsContext> context_;
  asio::ssl::stream<tcp::socket> stream_;
  prometheus::Counter* const failed_;
};

}  // namespace

std::unique_ptr<HttpTransport> MakePlainTransport(tcp::socket socket) {
  return std::make_unique<PlainTransport>(std::move(socket));
}

std::unique_ptr<HttpTransport> MakeTlsTransport(tcp::socket socket,
                                                std::shared_ptr<TlsContext> context,
                                                prometheus::Counter* failed) {
  return std::make_unique<TlsTransport>(std::move(socket), std::move(context), failed);
}

}  // namespace llava
