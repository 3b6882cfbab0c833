#pragma once

#include <prometheus/counter.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/error_code.hpp>
#include <functional>
#include <memory>

#include "server/runtime/tls_files.h"

namespace llava {

// The bytes of one connection, plain or encrypted. Everything runs on the socket's strand; a read
// and a write may be under way at the same time.
class HttpTransport {
 public:
  using Done = std::function<void(boost::system::error_code, size_t)>;

  virtual ~HttpTransport() = default;
  virtual void Handshake(Done done) = 0;
  // Some bytes, at least one.
  virtual void Read(boost::asio::mutable_buffer buffer, Done done) = 0;
  // Some of them, at least one.
  virtual void Write(boost::asio::const_buffer buffer, Done done) = 0;
  // No more will be written; the other side may still send.
  virtual void ShutdownSend() = 0;
  virtual void Close() = 0;
  // Bytes that the system took and the other side has not yet.
  virtual size_t Underway() = 0;
  // The client showed a certificate that was verified.
  virtual bool certified() = 0;
  virtual boost::asio::ip::tcp::socket& socket() = 0;
};

std::unique_ptr<HttpTransport> MakePlainTransport(boost::asio::ip::tcp::socket socket);
// `failed`, if there is one, counts handshakes that fail.
std::unique_ptr<HttpTransport> MakeTlsTransport(boost::asio::ip::tcp::socket socket,
                                                std::shared_ptr<TlsContext> context,
                                                prometheus::Counter* failed);

}  // namespace llava
