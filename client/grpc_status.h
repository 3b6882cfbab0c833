#pragma once

#include <grpcpp/support/status.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace llava {

// The same code and message; details that came as google.rpc.Status become payloads of the status,
// keyed by their type URL.
absl::Status StatusOf(const grpc::Status& status);

// How long the server asks to wait before a retry (google.rpc.RetryInfo), if it says so.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

}  // namespace llava
