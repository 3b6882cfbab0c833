#include "server/gateway/rpc_scope.h"

#include <utility>

#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {

RpcScope::RpcScope(std::string method, grpc::CallbackServerContext& context,
                   GatewayMetrics& metrics)
    : method_(std::move(method)), request_id_(RequestId(context)), metrics_(metrics) {}

absl::Status RpcScope::Admit(Admission& admission) {
  if (!admission.Enter()) {
    return OverloadedError("this gateway is shutting down; try again, here or elsewhere",
                           std::chrono::seconds(1));
  }
  admission_ = &admission;
  return absl::OkStatus();
}

void RpcScope::End(const absl::Status& status) {
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - received_;
  metrics_.CountRequest(method_, status.code(), took.count());
  if (!status.ok()) {
    // The caller is told the message too; it never quotes texts of the conversation.
    const LogFields fields = {{"request_id", request_id_},
                              {"method", method_},
                              {"code", absl::StatusCodeToString(status.code())},
                              {"error", std::string(status.message())}};
    if (status.code() == absl::StatusCode::kInternal) {
      LogError("call failed", fields);
    } else {
      LogInfo("call refused or ended early", fields);
    }
  }
  if (admission_ != nullptr) admission_->Leave();
}

void UnaryCall::Finish(const absl::Status& status) const {
  grpc::ServerUnaryReactor* reactor = reactor_;
  scope_->End(status);
  reactor->Finish(ToGrpc(status));
}

}  // namespace llava
