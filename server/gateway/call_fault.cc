#include "server/gateway/call_fault.h"

#include <utility>

#include "server/runtime/error_reason.h"

namespace llava {

absl::Status CallersFault(absl::Status status) {
  return WithReason(std::move(status), kReasonCaller);
}

bool IsFault(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kDeadlineExceeded:
      break;
    default:
      return false;
  }
  return !HasReason(status, kReasonCaller);
}

}  // namespace llava
