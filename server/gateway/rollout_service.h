#pragma once

#include "llava/v1/rollout.grpc.pb.h"
#include "server/gateway/turn_parts.h"
#include "server/gateway/unary_call.h"

namespace llava {

// What the guard of rollouts thinks, and the share of canaries, for operators.
class RolloutServiceImpl final : public v1::RolloutService::CallbackService {
 public:
  explicit RolloutServiceImpl(const TurnParts& parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* GetRollout(grpc::CallbackServerContext* context,
                                       const v1::GetRolloutRequest* request,
                                       v1::GetRolloutResponse* response) override;
  grpc::ServerUnaryReactor* SetCanaryShare(grpc::CallbackServerContext* context,
                                           const v1::SetCanaryShareRequest* request,
                                           v1::SetCanaryShareResponse* response) override;

 private:
  // NOT_FOUND unless a version of it is served.
  absl::Status CheckModel(const std::string& name) const;

  const TurnParts& parts_;
};

}  // namespace llava
