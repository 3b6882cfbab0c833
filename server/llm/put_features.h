#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "llava/v1/llm.grpc.pb.h"
#include "server/llm/llm_service.h"

namespace llava {

// Receives one PutFeatures stream into the store of `backend` (or refuses it with the status of
// `backend`). INVALID_ARGUMENT: another VisionSpec or shape than the model's (both are told),
// chunks that do not fit the header. DATA_LOSS: damaged on the way. `on_end` is called once.
grpc::ServerReadReactor<v1::PutFeaturesRequest>* ReceiveFeatures(
    const absl::StatusOr<const LlmBackend*>& backend, std::string request_id,
    v1::PutFeaturesResponse* response, std::function<void(const absl::Status&)> on_end);

}  // namespace llava
