#pragma once

// An HTTP/1.1 server (Boost.Beast): many connections on few threads, plain or encrypted.

#include <prometheus/counter.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/runtime/http_message.h"
#include "server/runtime/tls_files.h"

namespace llava {

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // an IP address (IPv6: in brackets or without), or localhost
  int port = 0;                    // 0 = any free one
  int threads = 1;
  HttpLimits limits;
  // With authorities all pages but those of probes (/livez, /health, /readyz) need a client
  // certificate.
  TlsFiles tls;
  prometheus::Counter* failed_handshakes = nullptr;  // outlives the server and its answers
};

class HttpServer {
 public:
  using Page = std::function<HttpResponse(const HttpRequest&)>;

  // Binds at once. UNAVAILABLE if the address is in use, INVALID_ARGUMENT if it is none or the
  // certificates are bad. `handler` must outlive the server.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           HttpHandler& handler);
  // Serves exact paths by GET and HEAD.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           std::map<std::string, Page> pages);
  virtual ~HttpServer() = default;  // cuts connections, joins

  virtual int port() const = 0;
  virtual int connections() const = 0;
  // Of HttpLimits::bodies_bytes in use.
  virtual uint64_t body_bytes() const = 0;
};

}  // namespace llava
