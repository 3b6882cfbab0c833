#pragma once

// HTTP requests and answers as handlers see them. Knows nothing of Boost: many include it.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llava {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;   // "GET"
  std::string path;     // without the query
  HttpHeaders headers;  // names in lower case
  std::string body;

  // Value of the first header of that (lower-case) name; empty if there is none.
  std::string_view Header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  HttpHeaders headers = {};
  // Of an answer in pieces: what is sent when nothing else was for HttpLimits::heartbeat, so that
  // nobody between takes a quiet connection for a dead one. Empty: nothing.
  std::string heartbeat = {};
};

// Bounds against clients that are slow, greedy or silent.
struct HttpLimits {
  // From the first byte; also that of a handshake, and until the first byte of a connection.
  std::chrono::milliseconds head_timeout{10'000};
  std::chrono::milliseconds body_timeout{60'000};
  std::chrono::milliseconds idle_timeout{60'000};   // between requests
  std::chrono::milliseconds write_timeout{30'000};  // without a byte going out
  std::chrono::milliseconds heartbeat{15'000};
  uint32_t head_bytes = 16u << 10;
  // Of all bodies that are being received. The first 16 KiB of each do not count: what is small
  // passes while others send pictures.
  uint64_t bodies_bytes = 256u << 20;
  // At a time. Beyond them those that wait for a next request are closed, else new ones wait.
  int connections = 4096;
};

// How one request is answered: Send once, or Begin, any number of Write, End. Thread-safe; never
// blocks. If it goes without an end the connection is cut.
//
// With BeginLate instead of Begin it is left open which of both it will be.
class HttpAnswer {
 public:
  virtual ~HttpAnswer() = default;
  virtual void Send(HttpResponse response) = 0;
  // A body that comes in pieces; that of `head` is the first one.
  virtual void Begin(HttpResponse head) = 0;
  // As Begin, at the first Write or End, or when there was neither for HttpLimits::heartbeat. Until
  // then another head may take its place.
  virtual void BeginLate(HttpResponse head) = 0;
  // Ends the answer: with `response` if it has not begun, else with `piece` as its last one.
  virtual void Fail(HttpResponse response, std::string piece) = 0;
  // Returns how many bytes wait for a slow reader, these included.
  virtual size_t Write(std::string piece) = 0;
  virtual void End() = 0;
  // Cuts the connection; the client counts as gone.
  virtual void Cut() = 0;
  // `on_gone` runs at most once, at once or on a thread of the server, when the client has gone
  // before the end of the answer.
  virtual void SetOnGone(std::function<void()> on_gone) = 0;
};

// Called on the threads of the server; must not block. Outlives the server.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // The head of a request is there. A response refuses it before its body is read; else
  // `body_limit` (preset to 64 KiB) is how much of it may come.
  virtual std::optional<HttpResponse> OnHead(const HttpRequest& head, uint64_t& body_limit) = 0;
  virtual void OnRequest(HttpRequest request, std::shared_ptr<HttpAnswer> answer) = 0;
  // What a request gets that never reaches the two above (400, 408, 413, 431, 503 ...).
  virtual HttpResponse ErrorPage(int status, const std::string& message) const;
};

}  // namespace llava
