#include "client/chat/report.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/grpc_status.h"

namespace llava {
namespace {

// Why an answer is not whole; empty when it is.
std::string Ending(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "";
    case v1::FINISH_REASON_LENGTH:
      return "cut off at the token limit";
    case v1::FINISH_REASON_CONTEXT:
      return "cut off: the context is full, /reset begins anew";
    case v1::FINISH_REASON_CANCELLED:
      return "stopped";
    case v1::FINISH_REASON_DEADLINE:
      return "cut off: out of time";
    case v1::FINISH_REASON_INTERRUPTED:
      return "cut off: the model version is gone";
    default:
      return "cut off by a fault";
  }
}

}  // namespace

std::string ClosingLine(const v1::TurnFinished& finished) {
  const v1::Timings& timings = finished.timings();
  const uint32_t tokens = finished.usage().generated_tokens();
  std::string line;
  if (timings.time_to_first_token_seconds() > 0) {
    line = absl::StrFormat("%.2f s to first token, ", timings.time_to_first_token_seconds());
  }
  // decode_seconds lies between the first token and the last: one token less than there are.
  if (tokens > 1 && timings.decode_seconds() > 0) {
    absl::StrAppendFormat(&line, "%.1f tokens/s, ", (tokens - 1) / timings.decode_seconds());
  }
  absl::StrAppend(&line, tokens, tokens == 1 ? " token" : " tokens");
  const std::string ending = Ending(finished.reason());
  if (!ending.empty()) absl::StrAppend(&line, " (", ending, ")");
  return line;
}

std::string ErrorLine(const absl::Status& status) {
  std::string line(status.message());
  if (line.empty()) line = absl::StatusCodeToString(status.code());
  if (const auto delay = RetryDelay(status)) {
    absl::StrAppend(&line, " (try again in ", absl::FormatDuration(*delay), ")");
  }
  return line;
}

}  // namespace llava
