#pragma once

#include <exception>
#include <string>

#include "absl/status/status.h"

namespace llava {

// What was thrown while a model was read, if memory or the device is to blame and not the files:
// RESOURCE_EXHAUSTED, or INTERNAL for a fault of CUDA. OK: neither.
absl::Status MachineFault(std::exception_ptr failure);

// Prints why a model could not be loaded, in one line, and returns the process's exit code:
// INVALID_ARGUMENT -> kExitUsage, NOT_FOUND, DATA_LOSS and PERMISSION_DENIED -> kExitModelMissing,
// FAILED_PRECONDITION -> kExitDeviceMissing, RESOURCE_EXHAUSTED -> kExitNoMemory, else 1.
int ReportLoadFailure(const std::string& program, const absl::Status& status);

}  // namespace llava
