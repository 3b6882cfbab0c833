#pragma once

// The border between the error regimes: exceptions of model/, absl::Status of server/, grpc::Status
// of the wire. One table each, nowhere else.

#include <grpcpp/support/status.h>

#include <chrono>
#include <exception>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace llava {

// Details (AddDetail, RetryAfter) travel as google.rpc.Status.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// std::invalid_argument, std::out_of_range -> INVALID_ARGUMENT; std::bad_alloc, memory and threads
// that the system or LibTorch lacks -> RESOURCE_EXHAUSTED; all else -> INTERNAL. The message is the
// first line of what(): LibTorch's stack trace follows it.
absl::Status FromException(std::exception_ptr exception);

// Attaches a message to the status, seen by clients in the status details.
void AddDetail(absl::Status& status, const google::protobuf::Message& detail);
// The first detail of the message's type; false if there is none.
bool GetDetail(const absl::Status& status, google::protobuf::Message* detail);

// When to come back by google.rpc.RetryInfo, if the status says so.
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);

// UNAVAILABLE with google.rpc.RetryInfo: "try again, here or elsewhere".
absl::Status OverloadedError(const std::string& message, std::chrono::milliseconds retry_after);
// RESOURCE_EXHAUSTED with the same: a limit of the caller's own.
absl::Status LimitError(const std::string& message, std::chrono::milliseconds retry_after);
// UNIMPLEMENTED naming a request field that was set but has no function in this build.
absl::Status UnimplementedField(const std::string& field);

}  // namespace llava
