#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>

namespace llava {

// When the caller stops waiting, on the clock that queues use; max() if it set no deadline.
inline std::chrono::steady_clock::time_point SteadyDeadline(
    const grpc::CallbackServerContext& context) {
  const auto left = context.deadline() - std::chrono::system_clock::now();
  constexpr auto kForever = std::chrono::hours(24 * 365);
  if (left > kForever) return std::chrono::steady_clock::time_point::max();
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(left);
}

}  // namespace llava
