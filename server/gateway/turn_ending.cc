#include "server/gateway/turn_ending.h"

#include "absl/strings/str_cat.h"
#include "server/gateway/call_fault.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

using std::chrono::system_clock;

// A deadline that is so near has passed: the client's clock and ours race for it.
constexpr std::chrono::milliseconds kDeadlineSlack{25};

// Nobody shall die of this answer again.
TurnEnding GivenUp(const std::string& why) {
  TurnEnding ending;
  ending.status = WithReason(absl::InternalError("given up: " + why), kReasonGivenUp);
  return ending;
}

}  // namespace

TurnEnding FinishedEnding(v1::FinishReason reason) {
  return {v1::TURN_STATE_FINISHED, reason, absl::OkStatus(), "", false};
}

TurnEnding FailedEnding(const absl::Status& status, const TurnDeadlines& deadlines,
                        size_t text_bytes) {
  TurnEnding ending;
  ending.status = status;
  if (absl::IsDeadlineExceeded(status)) {
    ending.reason = v1::FINISH_REASON_DEADLINE;
    const bool ours = deadlines.turn < deadlines.client;
    ending.status = absl::DeadlineExceededError(absl::StrCat(
        "time ran out: ", ours ? "the gateway's --request-timeout" : "the deadline of the call",
        " ended the answer after ", text_bytes, " bytes, which are kept"));
    if (!ours) ending.status = CallersFault(ending.status);
  }
  return ending;
}

TurnEnding BrokenEnding(TurnBreak why, const TurnDeadlines& deadlines, bool kept) {
  TurnEnding ending;
  ending.reason = v1::FINISH_REASON_CANCELLED;
  switch (why) {
    case TurnBreak::kCancelTurn:
      ending.message = "stopped by CancelTurn";
      break;
    case TurnBreak::kClientGone:
      ending.status = absl::CancelledError("the client went away");
      if (system_clock::now() + kDeadlineSlack >= deadlines.client) {
        ending.reason = v1::FINISH_REASON_DEADLINE;
        ending.status =
            CallersFault(absl::DeadlineExceededError("the deadline of the call has passed"));
      }
      break;
    case TurnBreak::kAbandoned:
      ending.status = absl::CancelledError(
          "nobody came back to read this answer within the gateway's --resume-grace");
      break;
    case TurnBreak::kShutdown:
      ending.reason = v1::FINISH_REASON_INTERRUPTED;
      ending.suspended = kept;
      ending.status =
          OverloadedError(kept ? "the gateway was stopped during this answer and goes on with it "
                                 "when it is back; read the rest with ResumeTurn"
                               : "the gateway was stopped during this answer; ask again",
                          std::chrono::seconds(1));
      break;
    case TurnBreak::kJournalFault:  // the caller knows more
      ending.reason = v1::FINISH_REASON_ERROR;
      ending.status = absl::InternalError("the journal of answers cannot be written");
      break;
  }
  return ending;
}

TurnEnding InterruptedEnding(const v1::ModelVersion& model) {
  TurnEnding ending;
  ending.reason = v1::FINISH_REASON_INTERRUPTED;
  ending.status = absl::FailedPreconditionError(absl::StrCat(
      "version ", model.version(), " of \"", model.name(),
      "\", which began this answer, is no longer served, and no other may go on with it; ",
      "RegenerateTurn asks again"));
  return ending;
}

TurnEnding QuarantinedEnding() {
  return GivenUp(absl::StrCat(kMaxDeaths,
                              " language workers died while they wrote this answer, and ",
                              "another shall not; ask differently"));
}

TurnEnding GivenUpEnding() {
  return GivenUp(absl::StrCat("the gateway died ", kMaxTries,
                              " times while it went on with this answer, and ",
                              "shall not again; its text so far is kept; ask differently"));
}

}  // namespace llava
