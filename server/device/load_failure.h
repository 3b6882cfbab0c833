#pragma once

#include <string>

#include "absl/status/status.h"

namespace llava {

// Prints why a model could not be loaded, in one line, and returns the process's exit code:
// INVALID_ARGUMENT -> kExitUsage, NOT_FOUND, DATA_LOSS and PERMISSION_DENIED -> kExitModelMissing,
// FAILED_PRECONDITION -> kExitDeviceMissing, RESOURCE_EXHAUSTED -> kExitNoMemory, else 1.
int ReportLoadFailure(const std::string& program, const absl::Status& status);

}  // namespace llava
