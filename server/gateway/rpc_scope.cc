#include "server/gateway/rpc_scope.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/call_fault.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/logging.h"
#include "server/runtime/request_id.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

std::string_view Authorization(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("authorization");
  if (found == metadata.end()) return {};
  return {found->second.data(), found->second.size()};
}

}  // namespace

RpcScope::RpcScope(std::string method, grpc::CallbackServerContext& context, const TurnParts& parts)
    : RpcScope(std::move(method), RequestId(context), Authorization(context), parts) {}

RpcScope::RpcScope(std::string method, std::string request_id, std::string_view authorization,
                   const TurnParts& parts)
    : method_(std::move(method)),
      request_id_(std::move(request_id)),
      caller_(parts.keys.Identify(authorization)),
      metrics_(parts.metrics),
      admission_(parts.admission) {}

absl::Status RpcScope::Enter(KeyRole least) const {
  if (!caller_.ok()) return caller_.status();
  if (caller_->role() >= least) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("the API key \"", caller_->name(),
                                                  "\" has the role ", ToString(caller_->role()),
                                                  "; this call needs the role ", ToString(least)));
}

absl::Status RpcScope::Admit() {
  if (auto status = Enter(); !status.ok()) return status;
  entered_ = admission_.Enter();
  return entered_ ? absl::OkStatus() : ShuttingDown();
}

void RpcScope::End(const absl::Status& status) {
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - received_;
  metrics_.CountRequest(method_, status, took.count());
  if (!status.ok()) {
    // The caller is told the message too; it never quotes texts of the conversation.
    const LogFields fields = {{"request_id", request_id_},
                              {"method", method_},
                              {"key", caller_.ok() ? caller_->name() : ""},
                              {"code", absl::StatusCodeToString(status.code())},
                              {"error", std::string(status.message())}};
    if (absl::IsInternal(status) || HasReason(status, kReasonDiskFull)) {
      LogError("call failed", fields);
    } else {
      LogInfo("call refused or ended early", fields);
    }
  }
  const auto place = std::move(place_);
  if (entered_) admission_.Leave();
}

}  // namespace llava
