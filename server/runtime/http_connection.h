#pragma once

#include <array>
#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "server/runtime/body_budget.h"
#include "server/runtime/http_message.h"
#include "server/runtime/http_transport.h"
#include "server/runtime/mutex.h"

namespace llava {

// One connection: reads a request, has it answered, reads the next. While an answer is in the
// making it listens for the client's going. Lives in its own callbacks, on the transport's strand.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  struct Parts {
    const HttpLimits& limits;
    HttpHandler& handler;
    bool certified;                      // all pages but those of probes need a client certificate
    std::shared_ptr<BodyBudget> bodies;  // of all connections
  };

  // `lifetime` is kept until the end, for the executor behind the transport and for counting.
  HttpConnection(std::unique_ptr<HttpTransport> transport, const Parts& parts,
                 std::shared_ptr<void> lifetime);
  // Once.
  void Start();
  // From any thread: ends it at once.
  void Shutdown();
  // The same unless a request is under way.
  void ShutdownIfIdle();
  // Waits for a next request, as far as one can tell from another thread.
  bool idle() const { return idle_; }

 private:
  class Answer;
  // What an answer and its connection share; the answer may be written from any thread.
  struct AnswerState {
    void Gone();

    Mutex mutex;
    bool gone LLAVA_GUARDED_BY(mutex) = false;
    bool over LLAVA_GUARDED_BY(mutex) = false;  // the answer is whole: nothing more can be said
    // Bytes written but not yet sent: those that the strand has not seen, and those it has.
    size_t posted LLAVA_GUARDED_BY(mutex) = 0, unsent LLAVA_GUARDED_BY(mutex) = 0;
    std::function<void()> on_gone LLAVA_GUARDED_BY(mutex);
  };
  enum class Phase { kIdle, kHead, kBody, kAnswer, kLinger, kClosed };
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  // `silence`: how long its first byte may take.
  void NextRequest(std::chrono::milliseconds silence);
  // Parses what is there and reads on where more is needed.
  void Pump();
  void Read();
  void OnRead(boost::system::error_code error, size_t bytes);
  void OnHead();
  void OnBody();
  void Reject(int status, const std::string& message);

  // Parts of an answer; nothing happens unless it is that of the request at hand.
  void Send(const std::shared_ptr<AnswerState>& of, HttpResponse response);
  void Begin(const std::shared_ptr<AnswerState>& of, HttpResponse head);
  void BeginLate(const std::shared_ptr<AnswerState>& of, HttpResponse head);
  // Of BeginLate, if there is one and nothing has begun.
  void BeginNow(const std::shared_ptr<AnswerState>& of);
  void Fail(const std::shared_ptr<AnswerState>& of, HttpResponse response, std::string piece);
  // A piece that HttpAnswer::Write has counted.
  void Written(const std::shared_ptr<AnswerState>& of, std::string piece);
  void Piece(const std::shared_ptr<AnswerState>& of, std::string piece);
  void End(const std::shared_ptr<AnswerState>& of);
  void Abandon(const std::shared_ptr<AnswerState>& of);
  std::string Head(const HttpResponse& response, std::optional<size_t> content_length);
  void AnswerDone();
  void Beat(const std::shared_ptr<AnswerState>& of);

  void Output(std::string bytes);
  void Flush();
  // The rest of what is being written.
  void WriteOn();
  // The connection ends when no byte more goes out for HttpLimits::write_timeout.
  void AwaitWriting();
  void OnWritten(boost::system::error_code error, size_t bytes);
  void Linger();
  void Close();
  void Await(std::chrono::milliseconds timeout);

  const std::shared_ptr<void> lifetime_;
  const std::unique_ptr<HttpTransport> transport_;
  const Parts parts_;
  boost::asio::steady_timer read_timer_, write_timer_, beat_timer_;
  Phase phase_ = Phase::kIdle;
  boost::beast::flat_buffer buffer_;
  std::array<char, 8192> chunk_;  // being read into
  std::optional<Parser> parser_;
  BodyBudget::Share body_share_;
  HttpRequest request_;  // at hand
  bool reading_ = false;
  std::atomic<bool> idle_ = false;  // for other threads

  std::shared_ptr<AnswerState> answer_;  // of the request at hand
  bool http10_ = false, head_only_ = false, keep_alive_ = true, chunked_ = false;
  // Of the answer at hand:
  bool begun_ = false;
  std::optional<HttpResponse> late_head_;
  std::string heartbeat_;
  std::chrono::steady_clock::time_point last_piece_;

  std::string output_, sending_;  // to be written next, being written
  size_t sent_ = 0;               // of what is being written
  size_t underway_ = 0;           // when the wait for it began
  bool close_when_sent_ = false, next_when_sent_ = false;
};

}  // namespace llava
