#pragma once

#include <grpcpp/server_context.h>

#include <string>
#include <string_view>

namespace llava {

// 128 random bits in hex.
std::string RandomId();
// `given` if it is a word of at most 128 printable characters, else a new id.
std::string AcceptRequestId(std::string_view given);
// The caller's "x-request-id", or a new one; it is sent back in the initial metadata.
std::string RequestId(grpc::CallbackServerContext& context);

}  // namespace llava
