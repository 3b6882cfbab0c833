#pragma once

// From a Generate request to a job of the engine: everything that can be refused before work.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/llm.pb.h"
#include "server/llm/llm_service.h"
#include "server/llm/sequence.h"

namespace llava {

// NOT_FOUND: another model. FAILED_PRECONDITION: another version. INVALID_ARGUMENT: version 0.
absl::Status CheckModel(const v1::ModelVersion& model, const v1::ModelInfo& served);

// Cheap checks, for a gRPC thread: model, sampling ranges, fields without a function here.
absl::Status CheckGenerate(const v1::GenerateRequest& request, const v1::ModelInfo& served);

// Renders, tokenizes, looks up features. FAILED_PRECONDITION with MissingFeatures in the details if
// features are not there. `sink`, times and ids of the job are left to the caller.
absl::StatusOr<GenerateJob> MakeJob(const v1::GenerateRequest& request, const LlmBackend& backend);

}  // namespace llava
