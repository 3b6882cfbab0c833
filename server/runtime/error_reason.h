#pragma once

// What the code of an error does not tell: google.rpc.ErrorInfo of the domain "llava". Clients see
// it (proto/llava/v1/chat.proto).

#include "absl/status/status.h"

namespace llava {

inline constexpr char kReasonCaller[] = "CALLER";
inline constexpr char kReasonGivenUp[] = "GIVEN_UP";
inline constexpr char kReasonContextLength[] = "CONTEXT_LENGTH";
inline constexpr char kReasonModelNotFound[] = "MODEL_NOT_FOUND";
inline constexpr char kReasonDiskFull[] = "DISK_FULL";

// Takes the place of another reason.
absl::Status WithReason(absl::Status status, const char* reason);
bool HasReason(const absl::Status& status, const char* reason);

}  // namespace llava
