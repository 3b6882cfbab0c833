#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <functional>
#include <memory>
#include <string_view>

#include "absl/status/status.h"

namespace llava {

// May a caller with this "authorization" value (empty: none) come in? Thread-safe.
using AccessGuard = std::function<absl::Status(std::string_view authorization)>;

// Ends reflection calls that `guard` refuses before they are read; other calls pass untouched (our
// services ask for themselves). gRPC's own reflection service knows nothing of callers.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeReflectionGuard(
    AccessGuard guard);

}  // namespace llava
