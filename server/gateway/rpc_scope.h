#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "server/gateway/gateway_metrics.h"
#include "server/runtime/service_process.h"

namespace llava {

// One public call from receipt to its end: request id, admission, metrics, log line of a fault.
// End once, from any thread.
class RpcScope {
 public:
  RpcScope(std::string method, grpc::CallbackServerContext& context, GatewayMetrics& metrics);

  // For calls that make work: UNAVAILABLE with RetryInfo while the process drains. Else the process
  // waits for End before it stops.
  absl::Status Admit(Admission& admission);
  void End(const absl::Status& status);

  const std::string& request_id() const { return request_id_; }
  std::chrono::steady_clock::time_point received() const { return received_; }

 private:
  const std::string method_;
  const std::string request_id_;
  const std::chrono::steady_clock::time_point received_ = std::chrono::steady_clock::now();
  GatewayMetrics& metrics_;
  Admission* admission_ = nullptr;  // entered
};

// A unary call that may be answered from another thread. Finish exactly once.
class UnaryCall {
 public:
  UnaryCall(std::string method, grpc::CallbackServerContext& context, GatewayMetrics& metrics)
      : scope_(std::make_shared<RpcScope>(std::move(method), context, metrics)),
        reactor_(context.DefaultReactor()) {}

  void Finish(const absl::Status& status) const;
  RpcScope& scope() const { return *scope_; }
  grpc::ServerUnaryReactor* reactor() const { return reactor_; }

 private:
  std::shared_ptr<RpcScope> scope_;
  grpc::ServerUnaryReactor* reactor_;  // gRPC's, alive until Finish
};

}  // namespace llava
