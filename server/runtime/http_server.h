#pragma once

// A small HTTP/1.1 server (Boost.Beast) for /metrics and probes; one thread.

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace llava {

struct HttpRequest {
  std::string authorization;  // the header's value; empty if there is none
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

// Serves exact paths by GET (and HEAD). Handlers run on the server's thread and must not block.
class HttpServer {
 public:
  using Handler = std::function<HttpResponse(const HttpRequest&)>;

  // Binds at once. UNAVAILABLE if the address is in use, INVALID_ARGUMENT if it is none.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& host, int port,
                                                           std::map<std::string, Handler> handlers);
  virtual ~HttpServer() = default;  // stops and joins

  virtual int port() const = 0;
};

}  // namespace llava
