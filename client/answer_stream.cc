#include "client/answer_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llava {

absl::Status AnswerStream::Add(const v1::ChatEvent& event) {
  switch (event.event_case()) {
    case v1::ChatEvent::kTurnStarted:
      answer_.started = event.turn_started();
      ++num_streams_;
      return absl::OkStatus();
    case v1::ChatEvent::kText:
      return AddText(event.text());
    case v1::ChatEvent::kTurnFinished:
      answer_.finished = event.turn_finished();
      finished_ = true;
      if (answer_.finished.text_bytes() != answer_.text.size()) {
        return absl::DataLossError(absl::StrCat("the gateway says that the answer has ",
                                                answer_.finished.text_bytes(), " bytes, but ",
                                                answer_.text.size(), " arrived"));
      }
      return absl::OkStatus();
    case v1::ChatEvent::EVENT_NOT_SET:
      break;  // a kind of event that this client does not know yet
  }
  return absl::OkStatus();
}

absl::Status AnswerStream::AddText(const v1::TextDelta& delta) {
  if (finished_) return absl::DataLossError("text came behind the end of the answer");
  const size_t have = answer_.text.size();
  if (delta.offset() > have) {
    return absl::DataLossError(absl::StrCat("bytes ", have, " to ", delta.offset(),
                                            " of the answer are missing from the stream"));
  }
  std::string_view piece = delta.text();
  piece.remove_prefix(std::min<size_t>(have - delta.offset(), piece.size()));
  if (piece.empty()) return absl::OkStatus();
  answer_.text += piece;
  if (on_text_) on_text_(piece);
  return absl::OkStatus();
}

absl::StatusOr<Answer> AnswerStream::Finish() && {
  if (!finished_) return absl::DataLossError("the stream ended before the answer was finished");
  return std::move(answer_);
}

}  // namespace llava
