#pragma once

// From a Generate request to a job of the engine: everything that can be refused before work.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/llm.pb.h"
#include "server/llm/llm_service.h"
#include "server/llm/sequence.h"

namespace llava {

// Cheap checks, for a gRPC thread: sampling ranges, fields without a function here.
absl::Status CheckGenerate(const v1::GenerateRequest& request);

// Renders, tokenizes and counts. FAILED_PRECONDITION with MissingFeatures in the details if
// features are not there that tell how many image tokens their pictures take.
absl::StatusOr<Prompt> CountPrompt(
    const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages,
    const LlmBackend& backend);

// Renders, tokenizes, looks up features. FAILED_PRECONDITION with MissingFeatures in the details if
// features are not there. `sink`, times and ids of the job are left to the caller.
absl::StatusOr<GenerateJob> MakeJob(const v1::GenerateRequest& request, const LlmBackend& backend);

}  // namespace llava
