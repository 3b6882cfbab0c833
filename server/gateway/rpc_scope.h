#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/turn_parts.h"
#include "server/runtime/service_process.h"

namespace llava {

// One public call from receipt to its end: who calls, request id, admission, metrics, log line of a
// fault. End once, from any thread.
class RpcScope {
 public:
  RpcScope(std::string method, grpc::CallbackServerContext& context, const TurnParts& parts);
  // A call that came another way; `authorization` as in ApiKeys::Identify.
  RpcScope(std::string method, std::string request_id, std::string_view authorization,
           const TurnParts& parts);

  // What every call asks first. UNAUTHENTICATED without a good key, PERMISSION_DENIED when its role
  // may less than `least`.
  absl::Status Enter(KeyRole least = KeyRole::kUser) const;
  // The same for calls that make work, and UNAVAILABLE with RetryInfo while the process drains.
  // Else the process waits for End before it stops.
  absl::Status Admit();
  void End(const absl::Status& status);
  // Until then.
  void Hold(std::shared_ptr<void> place) { place_ = std::move(place); }

  // Only after a good Enter.
  const Caller& caller() const { return *caller_; }
  const std::string& request_id() const { return request_id_; }
  std::chrono::steady_clock::time_point received() const { return received_; }

 private:
  const std::string method_;
  const std::string request_id_;
  const std::chrono::steady_clock::time_point received_ = std::chrono::steady_clock::now();
  const absl::StatusOr<Caller> caller_;
  GatewayMetrics& metrics_;
  Admission& admission_;
  bool entered_ = false;
  std::shared_ptr<void> place_;
};

}  // namespace llava
