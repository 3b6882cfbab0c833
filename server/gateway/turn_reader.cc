#include "server/gateway/turn_reader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

constexpr size_t kPieceBytes = 32u << 10;

bool WithinCharacter(std::string_view text, uint64_t offset) {
  return offset < text.size() && (static_cast<uint8_t>(text[offset]) & 0xC0) == 0x80;
}

// What the readers of a turn were told at its end. Answers that were stopped end like any other.
absl::Status StatusOf(const StoredTurn& stored) {
  const v1::Turn& turn = stored.turn;
  if (turn.state() == v1::TURN_STATE_FINISHED) return absl::OkStatus();
  if (turn.finish_reason() == v1::FINISH_REASON_CANCELLED) return absl::OkStatus();
  absl::StatusCode code = stored.error_code;
  if (code == absl::StatusCode::kOk) {  // of an earlier version of the tables
    code = turn.finish_reason() == v1::FINISH_REASON_DEADLINE ? absl::StatusCode::kDeadlineExceeded
           : turn.finish_reason() == v1::FINISH_REASON_INTERRUPTED
               ? absl::StatusCode::kFailedPrecondition
               : absl::StatusCode::kInternal;
  }
  return absl::Status(code, turn.error_message());
}

}  // namespace

absl::Status CheckResumePoint(const ResumePoint& from, std::string_view text,
                              const std::vector<uint64_t>& taken_up) {
  const uint64_t offset = from.after_offset;
  // The text from the shortest place at which it was taken up after the reader's stream is new.
  uint64_t sure = UINT64_MAX;
  for (size_t i = from.restarts.value_or(static_cast<uint32_t>(taken_up.size()));
       i < taken_up.size(); ++i) {
    sure = std::min(sure, taken_up[i]);
  }
  if (offset > sure || (offset > text.size() && !taken_up.empty())) {
    return absl::DataLossError(absl::StrCat(
        "what followed byte ", std::min<uint64_t>(sure, text.size()),
        " of this answer is gone: it was asked anew (RegenerateTurn), or the gateway's machine ",
        "went down; read it again from there, byte ", offset, " and what leads to it may differ"));
  }
  if (offset > text.size()) {
    return absl::OutOfRangeError(absl::StrCat("after_offset is ", offset, ", the answer has ",
                                              text.size(), " bytes so far"));
  }
  if (WithinCharacter(text, offset)) {
    return absl::InvalidArgumentError(
        absl::StrCat("after_offset ", offset, " is within a UTF-8 character"));
  }
  return absl::OkStatus();
}

void SendText(TurnSink& sink, std::string_view text, uint64_t offset) {
  while (offset < text.size()) {
    uint64_t end = std::min<uint64_t>(offset + kPieceBytes, text.size());
    while (end > offset + 1 && WithinCharacter(text, end)) --end;
    v1::ChatEvent event;
    event.mutable_text()->set_offset(offset);
    event.mutable_text()->set_text(std::string(text.substr(offset, end - offset)));
    sink.Send(std::move(event));
    offset = end;
  }
}

void ReplayTurn(const StoredTurn& stored, const TurnReader& reader, const ResumePoint& from) {
  const v1::Turn& turn = stored.turn;
  absl::Status status = CheckResumePoint(from, turn.answer_text(), stored.taken_up);
  if (!status.ok()) return reader.End(status);
  v1::ChatEvent event;
  v1::TurnStarted& started = *event.mutable_turn_started();
  started.set_session_id(turn.session_id());
  started.set_turn_id(turn.id());
  started.set_turn_number(turn.number());
  *started.mutable_model() = turn.model();
  started.set_seed(turn.seed());
  started.set_restarts(static_cast<uint32_t>(stored.taken_up.size()));
  reader.sink->Send(event);
  SendText(*reader.sink, turn.answer_text(), from.after_offset);
  status = StatusOf(stored);
  if (status.ok()) {
    v1::TurnFinished& finished = *event.mutable_turn_finished();
    finished.set_reason(turn.finish_reason());
    *finished.mutable_usage() = turn.usage();
    *finished.mutable_timings() = turn.timings();
    *finished.mutable_model() = turn.model();
    finished.set_text_bytes(turn.answer_text().size());
    reader.sink->Send(std::move(event));
  }
  reader.End(status);
}

}  // namespace llava
