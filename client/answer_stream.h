#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/chat.pb.h"

namespace llava {

// A whole answer.
struct Answer {
  v1::TurnStarted started;
  std::string text;  // UTF-8
  v1::TurnFinished finished;
};

// Gets each piece of an answer as it comes: whole UTF-8 characters, every byte exactly once.
using TextCallback = std::function<void(std::string_view text)>;

// Puts an answer together from the events of its stream.
//
// Bytes below the offset already reached are dropped, so events may come twice (a resumed stream).
// Not thread-safe: one thread reads a stream.
class AnswerStream {
 public:
  explicit AnswerStream(TextCallback on_text) : on_text_(std::move(on_text)) {}

  // DATA_LOSS: a gap in the text, an event out of order, or a total length that does not fit.
  absl::Status Add(const v1::ChatEvent& event);

  // The answer once its stream has ended without an error. DATA_LOSS: `turn_finished` never came.
  absl::StatusOr<Answer> Finish() &&;

  // What the last `turn_started` said; empty ids before one came.
  const v1::TurnStarted& started() const { return answer_.started; }
  // Streams that have begun: one, and one for each that was resumed.
  int num_streams() const { return num_streams_; }
  // Bytes of text that have come.
  uint64_t text_bytes() const { return answer_.text.size(); }
  bool finished() const { return finished_; }

 private:
  absl::Status AddText(const v1::TextDelta& delta);

  TextCallback on_text_;
  Answer answer_;
  int num_streams_ = 0;
  bool finished_ = false;
};

}  // namespace llava
