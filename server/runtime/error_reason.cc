#include "server/runtime/error_reason.h"

#include "google/rpc/error_details.pb.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr char kDomain[] = "llava";

}  // namespace

absl::Status WithReason(absl::Status status, const char* reason) {
  google::rpc::ErrorInfo info;
  info.set_domain(kDomain);
  info.set_reason(reason);
  AddDetail(status, info);
  return status;
}

bool HasReason(const absl::Status& status, const char* reason) {
  google::rpc::ErrorInfo info;
  return GetDetail(status, &info) && info.domain() == kDomain && info.reason() == reason;
}

}  // namespace llava
