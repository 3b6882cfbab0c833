#pragma once

#include <google/protobuf/message.h>

#include <cstdint>

#include "absl/status/status.h"

namespace llava {

// INVALID_ARGUMENT that names the largest field, for a request of `bytes` that is longer than that.
absl::Status CheckRequestBytes(const google::protobuf::Message& request, uint64_t bytes,
                               uint64_t most_bytes);

}  // namespace llava
