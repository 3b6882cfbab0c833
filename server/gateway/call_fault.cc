#include "server/gateway/call_fault.h"

#include <chrono>
#include <utility>

#include "server/runtime/error_reason.h"
#include "server/runtime/status.h"

namespace llava {

absl::Status CallersFault(absl::Status status) {
  return WithReason(std::move(status), kReasonCaller);
}

absl::Status ShuttingDown() {
  return OverloadedError("this gateway is shutting down; try again, here or elsewhere",
                         std::chrono::seconds(1));
}

bool IsBroken(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsDataLoss(status) || absl::IsUnknown(status);
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
