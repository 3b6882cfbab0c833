#include "server/runtime/http_connection.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <iterator>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace llava {
namespace {

namespace http = boost::beast::http;
using boost::system::error_code;

constexpr uint64_t kDefaultBodyBytes = 64u << 10;
// What a client may send ahead while its request is being answered.
constexpr size_t kMaxAhead = 64u << 10;
// Of a body: does not count for HttpLimits::bodies_bytes.
constexpr size_t kFreeBodyBytes = 16u << 10;
// Time for a refused client to read why, while it still sends.
constexpr std::chrono::seconds kLingerTime{2};
// Where others need a client certificate: probes have none.
constexpr std::string_view kUncertified[] = {"/livez", "/health", "/readyz"};

}  // namespace

std::string_view HttpRequest::Header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

HttpResponse HttpHandler::ErrorPage(int status, const std::string& message) const {
  return {status, "text/plain; charset=utf-8", message + "\n"};
}

// Passes what it is told to the connection's strand. Cuts the connection if it is forgotten.
class HttpConnection::Answer final : public HttpAnswer {
 public:
  Answer(std::shared_ptr<HttpConnection> connection, std::shared_ptr<AnswerState> state)
      : connection_(std::move(connection)), state_(std::move(state)) {}
  ~Answer() override { Post(&HttpConnection::Abandon); }

  void Send(HttpResponse response) override { Post(&HttpConnection::Send, std::move(response)); }
  void Begin(HttpResponse head) override { Post(&HttpConnection::Begin, std::move(head)); }
  void BeginLate(HttpResponse head) override { Post(&HttpConnection::BeginLate, std::move(head)); }
  void Fail(HttpResponse response, std::string piece) override {
    Post(&HttpConnection::Fail, std::move(response), std::move(piece));
  }
  size_t Write(std::string piece) override {
    size_t waiting;
    {
      MutexLock lock(state_->mutex);
      if (state_->gone) return 0;
      state_->posted += piece.size();
      waiting = state_->posted + state_->unsent;
    }
    Post(&HttpConnection::Written, std::move(piece));
    return waiting;
  }
  void End() override { Post(&HttpConnection::End); }
  void Cut() override { Post(&HttpConnection::Abandon); }
  void SetOnGone(std::function<void()> on_gone) override {
    {
      MutexLock lock(state_->mutex);
      if (!state_->gone) {
        state_->on_gone = std::move(on_gone);
        return;
      }
    }
    on_gone();
  }

 private:
  template <typename... Args>
  void Post(void (HttpConnection::*part)(const std::shared_ptr<AnswerState>&, Args...),
            Args... args) {
    // Not to a server that may be about to end: it closes its connections first, and waits here.
    MutexLock lock(state_->mutex);
    if (state_->gone || state_->over) return;
    boost::asio::post(
        connection_->transport_->socket().get_executor(),
        [connection = connection_, state = state_, part, ... args = std::move(args)]() mutable {
          ((*connection).*part)(state, std::move(args)...);
        });
  }

  const std::shared_ptr<HttpConnection> connection_;
  const std::shared_ptr<AnswerState> state_;
};

void HttpConnection::AnswerState::Gone() {
  std::function<void()> told;
  {
    MutexLock lock(mutex);
    gone = true;
    told = std::move(on_gone);
    on_gone = nullptr;
  }
  if (told) told();
}

HttpConnection::HttpConnection(std::unique_ptr<HttpTransport> transport, const Parts& parts,
                               std::shared_ptr<void> lifetime)
    : lifetime_(std::move(lifetime)),
      transport_(std::move(transport)),
      parts_(parts),
      read_timer_(transport_->socket().get_executor()),
      write_timer_(transport_->socket().get_executor()),
      beat_timer_(transport_->socket().get_executor()),
      body_share_(parts_.bodies) {}

void HttpConnection::Start() {
  boost::asio::post(transport_->socket().get_executor(), [self = shared_from_this()] {
    self->Await(self->parts_.limits.head_timeout);
    self->transport_->Handshake([self](error_code error, size_t) {
      if (error) return self->Close();
      self->NextRequest(self->parts_.limits.head_timeout);
    });
  });
}

void HttpConnection::Shutdown() {
  boost::asio::post(transport_->socket().get_executor(),
                    [self = shared_from_this()] { self->Close(); });
}

void HttpConnection::ShutdownIfIdle() {
  boost::asio::post(transport_->socket().get_executor(), [self = shared_from_this()] {
    if (self->phase_ == Phase::kIdle) self->Close();
  });
}

// The connection ends unless something else is awaited, or nothing, before `timeout` is over.
void HttpConnection::Await(std::chrono::milliseconds timeout) {
  read_timer_.expires_after(timeout);
  read_timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->read_timer_.expiry() > std::chrono::steady_clock::now()) return;
    const bool waiting = self->phase_ == Phase::kHead || self->phase_ == Phase::kBody;
    if (waiting) return self->Reject(408, "the request took too long to come");
    if (self->phase_ != Phase::kAnswer) self->Close();
  });
}

void HttpConnection::NextRequest(std::chrono::milliseconds silence) {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kIdle;
  idle_ = true;
  parser_.emplace();
  parser_->header_limit(parts_.limits.head_bytes);
  parser_->body_limit(std::numeric_limits<uint64_t>::max());  // judged in OnHead
  Await(silence);
  Pump();
}

void HttpConnection::Pump() {
  while (buffer_.size() > 0 &&
         (phase_ == Phase::kIdle || phase_ == Phase::kHead || phase_ == Phase::kBody)) {
    if (phase_ == Phase::kIdle) {
      phase_ = Phase::kHead;
      idle_ = false;
      Await(parts_.limits.head_timeout);
    }
    error_code error;
    buffer_.consume(parser_->put(buffer_.data(), error));
    // The parser bounds neither the line before a chunk nor the fields behind the last one.
    if (error == http::error::need_more && buffer_.size() >= parts_.limits.head_bytes) {
      error = http::error::header_limit;
    }
    if (error == http::error::need_more) break;
    if (error == http::error::header_limit) return Reject(431, "the headers are too long");
    if (error == http::error::body_limit) return Reject(413, "the body is too long");
    if (error) return Reject(400, absl::StrCat("no good HTTP request: ", error.message()));
    if (phase_ == Phase::kHead && parser_->is_header_done()) OnHead();
    if (phase_ != Phase::kBody) continue;
    const size_t body = parser_->get().body().size();
    if (body > kFreeBodyBytes && !body_share_.Grow(body - kFreeBodyBytes)) {
      return Reject(503, "too many large requests are being received; try again");
    }
    if (parser_->is_done()) OnBody();
  }
  Read();
}

void HttpConnection::Read() {
  if (reading_ || phase_ == Phase::kClosed) return;
  if (phase_ == Phase::kLinger) buffer_.clear();
  if (phase_ == Phase::kAnswer && buffer_.size() >= kMaxAhead) return;  // the next one can wait
  reading_ = true;
  transport_->Read(
      boost::asio::buffer(chunk_),
      [self = shared_from_this()](error_code error, size_t bytes) { self->OnRead(error, bytes); });
}

void HttpConnection::OnRead(error_code error, size_t bytes) {
  reading_ = false;
  if (error) {
    if (answer_ || sending_.empty()) return Close();
    phase_ = Phase::kLinger;  // what is on its way still goes out
    close_when_sent_ = true;
    return;
  }
  boost::beast::net::buffer_copy(buffer_.prepare(bytes), boost::asio::buffer(chunk_, bytes));
  buffer_.commit(bytes);
  Pump();
}

void HttpConnection::OnHead() {
  phase_ = Phase::kBody;
  Await(parts_.limits.body_timeout);
  const auto& message = parser_->get();
  request_.method = std::string(message.method_string());
  request_.path = std::string(message.target().substr(0, message.target().find('?')));
  request_.headers.clear();
  for (const auto& field : message) {
    request_.headers.emplace_back(absl::AsciiStrToLower(std::string(field.name_string())),
                                  std::string(field.value()));
  }
  // What is not understood the same way by everybody between here and the client could hide another
  // request.
  const auto hosts = message.count(http::field::host);
  const auto codings = message.count(http::field::transfer_encoding);
  const bool chunked =
      codings == 1 && parser_->chunked() &&
      absl::EqualsIgnoreCase(std::string(message[http::field::transfer_encoding]), "chunked");
  const std::string length(message[http::field::content_length]);
  if (hosts > 1 || absl::StrContains(length, ',')) {
    return Reject(400, "a request has one host and one length");
  }
  if (codings > 0 && !chunked) return Reject(501, "the only transfer encoding is chunked");
  http10_ = message.version() < 11;
  head_only_ = request_.method == "HEAD";
  keep_alive_ = parser_->keep_alive() && !http10_;
  uint64_t limit = kDefaultBodyBytes;
  std::optional<HttpResponse> refusal;
  if (parts_.certified && !transport_->certified() &&
      std::ranges::find(kUncertified, request_.path) == std::end(kUncertified)) {
    refusal = parts_.handler.ErrorPage(403, "a client certificate is needed here");
  } else {
    refusal = parts_.handler.OnHead(request_, limit);
  }
  if (!refusal && parser_->content_length().value_or(0) > limit) {
    refusal = parts_.handler.ErrorPage(
        413,
        absl::StrCat("the body has ", *parser_->content_length(), " bytes, allowed are ", limit));
  }
  if (refusal) {
    keep_alive_ = keep_alive_ && parser_->is_done();  // nothing of a body is on its way
    answer_ = std::make_shared<AnswerState>();
    phase_ = Phase::kAnswer;
    std::make_shared<Answer>(shared_from_this(), answer_)->Send(*std::move(refusal));
    return;
  }
  parser_->body_limit(limit);
  parser_->eager(true);
  if (absl::EqualsIgnoreCase(std::string(request_.Header("expect")), "100-continue")) {
    Output("HTTP/1.1 100 Continue\r\n\r\n");
  }
}

void HttpConnection::OnBody() {
  phase_ = Phase::kAnswer;
  read_timer_.cancel();
  request_.body = std::move(parser_->get().body());
  answer_ = std::make_shared<AnswerState>();
  parts_.handler.OnRequest(std::move(request_),
                           std::make_shared<Answer>(shared_from_this(), answer_));
  body_share_.Release();  // handlers take what they need of it and drop the rest
}

// For requests that are broken: what follows on the connection means nothing.
void HttpConnection::Reject(int status, const std::string& message) {
  keep_alive_ = false;
  head_only_ = false;
  answer_ = std::make_shared<AnswerState>();
  phase_ = Phase::kAnswer;
  parser_.reset();  // the body so far
  body_share_.Release();
  HttpResponse page = parts_.handler.ErrorPage(status, message);
  if (status == 503) page.headers.emplace_back("Retry-After", "1");
  Send(answer_, std::move(page));
  Read();
}

std::string HttpConnection::Head(const HttpResponse& response,
                                 std::optional<size_t> content_length) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(response.status));
  std::string head =
      absl::StrCat("HTTP/1.1 ", response.status, " ", std::string(reason),
                   "\r\nContent-Type: ", response.content_type,
                   "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n");
  for (const auto& [name, value] : response.headers) {
    absl::StrAppend(&head, name, ": ", value, "\r\n");
  }
  if (content_length) {
    absl::StrAppend(&head, "Content-Length: ", *content_length, "\r\n");
  } else if (chunked_) {
    head += "Transfer-Encoding: chunked\r\n";
  }
  if (!keep_alive_) head += "Connection: close\r\n";
  return head + "\r\n";
}

void HttpConnection::Send(const std::shared_ptr<AnswerState>& of, HttpResponse response) {
  if (of != answer_ || phase_ != Phase::kAnswer) return;
  std::string bytes = Head(response, response.body.size());
  if (!head_only_) bytes += response.body;
  Output(std::move(bytes));
  AnswerDone();
}

void HttpConnection::Begin(const std::shared_ptr<AnswerState>& of, HttpResponse head) {
  if (of != answer_ || phase_ != Phase::kAnswer) return;
  begun_ = true;
  late_head_.reset();
  beat_timer_.cancel();
  chunked_ = !http10_;
  Output(Head(head, std::nullopt));
  if (!head.body.empty()) Piece(of, std::move(head.body));
  heartbeat_ = std::move(head.heartbeat);
  last_piece_ = std::chrono::steady_clock::now();
  if (!heartbeat_.empty()) Beat(of);
}

void HttpConnection::BeginLate(const std::shared_ptr<AnswerState>& of, HttpResponse head) {
  if (of != answer_ || phase_ != Phase::kAnswer || begun_) return;
  const bool waits = late_head_.has_value();
  late_head_ = std::move(head);
  if (waits) return;
  beat_timer_.expires_after(parts_.limits.heartbeat);
  beat_timer_.async_wait([self = shared_from_this(), of](error_code error) {
    if (!error) self->BeginNow(of);
  });
}

void HttpConnection::BeginNow(const std::shared_ptr<AnswerState>& of) {
  if (of == answer_ && late_head_) Begin(of, *std::exchange(late_head_, std::nullopt));
}

void HttpConnection::Fail(const std::shared_ptr<AnswerState>& of, HttpResponse response,
                          std::string piece) {
  if (of != answer_ || phase_ != Phase::kAnswer) return;
  if (!begun_) return Send(of, std::move(response));
  Piece(of, std::move(piece));
  End(of);
}

// Sends a heartbeat if one is due, and looks again when the next one is.
void HttpConnection::Beat(const std::shared_ptr<AnswerState>& of) {
  if (of != answer_ || phase_ != Phase::kAnswer) return;
  const auto due = last_piece_ + parts_.limits.heartbeat;
  // A reader that is behind gets none: they would only pile up.
  if (due <= std::chrono::steady_clock::now()) {
    if (sending_.empty()) Piece(of, heartbeat_);
    last_piece_ = std::chrono::steady_clock::now();
  }
  beat_timer_.expires_at(last_piece_ + parts_.limits.heartbeat);
  beat_timer_.async_wait([self = shared_from_this(), of](error_code error) {
    if (!error) self->Beat(of);
  });
}

void HttpConnection::Written(const std::shared_ptr<AnswerState>& of, std::string piece) {
  const size_t size = piece.size();
  Piece(of, std::move(piece));
  MutexLock lock(of->mutex);
  of->posted -= size;
  if (of == answer_) of->unsent = sending_.size() + output_.size();
}

void HttpConnection::Piece(const std::shared_ptr<AnswerState>& of, std::string piece) {
  if (of != answer_ || phase_ != Phase::kAnswer) return;
  BeginNow(of);
  if (piece.empty() || head_only_) return;
  last_piece_ = std::chrono::steady_clock::now();
  if (!chunked_) return Output(std::move(piece));
  Output(absl::StrCat(absl::Hex(piece.size()), "\r\n", piece, "\r\n"));
}

void HttpConnection::End(const std::shared_ptr<AnswerState>& of) {
  if (of != answer_ || phase_ != Phase::kAnswer) return;
  BeginNow(of);
  if (chunked_) Output("0\r\n\r\n");
  AnswerDone();
}

void HttpConnection::Abandon(const std::shared_ptr<AnswerState>& of) {
  if (of == answer_ && phase_ == Phase::kAnswer) Close();
}

void HttpConnection::AnswerDone() {
  if (answer_) {
    MutexLock lock(answer_->mutex);
    answer_->over = true;
  }
  answer_ = nullptr;
  chunked_ = begun_ = false;
  late_head_.reset();
  beat_timer_.cancel();
  if (keep_alive_) {
    // Not before this one is on its way: who sends requests and reads nothing must not have us
    // pile up answers.
    next_when_sent_ = true;
  } else {
    phase_ = Phase::kLinger;
    close_when_sent_ = true;
  }
  Flush();
}

void HttpConnection::Output(std::string bytes) {
  if (phase_ == Phase::kClosed) return;
  output_ += bytes;
  Flush();
}

void HttpConnection::Flush() {
  if (!sending_.empty() || phase_ == Phase::kClosed) return;
  if (output_.empty()) {
    if (std::exchange(close_when_sent_, false)) return Linger();
    if (std::exchange(next_when_sent_, false)) NextRequest(parts_.limits.idle_timeout);
    return;
  }
  sending_.swap(output_);
  sent_ = 0;
  WriteOn();
}

void HttpConnection::WriteOn() {
  AwaitWriting();
  transport_->Write(boost::asio::buffer(sending_) + sent_,
                    [self = shared_from_this()](error_code error, size_t bytes) {
                      self->OnWritten(error, bytes);
                    });
}

void HttpConnection::AwaitWriting() {
  underway_ = transport_->Underway();
  write_timer_.expires_after(parts_.limits.write_timeout);
  write_timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->write_timer_.expiry() > std::chrono::steady_clock::now()) return;
    // The system has room for more only when much of what it has is gone: who reads slowly is not
    // yet one who does not.
    if (self->transport_->Underway() < self->underway_) return self->AwaitWriting();
    self->Close();
  });
}

void HttpConnection::OnWritten(error_code error, size_t bytes) {
  write_timer_.cancel();
  if (error) return Close();
  sent_ += bytes;
  if (sent_ < sending_.size() && phase_ != Phase::kClosed) return WriteOn();
  sending_.clear();
  if (answer_) {
    MutexLock lock(answer_->mutex);
    answer_->unsent = output_.size();
  }
  Flush();
}

// A client that still sends would otherwise get a reset instead of the answer.
void HttpConnection::Linger() {
  transport_->ShutdownSend();
  Await(kLingerTime);
  Read();
}

void HttpConnection::Close() {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  idle_ = false;
  parser_.reset();
  body_share_.Release();
  read_timer_.cancel();
  write_timer_.cancel();
  beat_timer_.cancel();
  transport_->Close();
  if (const auto answer = std::exchange(answer_, nullptr)) answer->Gone();
}

}  // namespace llava
