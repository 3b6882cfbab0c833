#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "server/runtime/status.h"

namespace llava {

// What this service answers when another try in a moment, here or elsewhere, may go well.
inline absl::Status LlmBusyError(const std::string& why) {
  return OverloadedError("llm: " + why, std::chrono::milliseconds(500));
}

}  // namespace llava
