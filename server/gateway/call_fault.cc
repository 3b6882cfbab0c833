#include "server/gateway/call_fault.h"

#include "google/rpc/error_details.pb.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr char kDomain[] = "llava", kCaller[] = "CALLER";

}  // namespace

absl::Status CallersFault(absl::Status status) {
  google::rpc::ErrorInfo info;
  info.set_domain(kDomain);
  info.set_reason(kCaller);
  AddDetail(status, info);
  return status;
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
  google::rpc::ErrorInfo info;
  return !GetDetail(status, &info) || info.domain() != kDomain || info.reason() != kCaller;
}

}  // namespace llava
