#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace llava {

// Why a worker could not load its model, as what makes it throws it.
struct LoadFailure : std::runtime_error {
  explicit LoadFailure(absl::Status why)
      : std::runtime_error(std::string(why.message())), status(std::move(why)) {}
  absl::Status status;
};

// What `failure`, thrown while the checkpoint at `path` was opened or read, means, in one line.
// CANCELLED: told to stop. INVALID_ARGUMENT (std::invalid_argument): the settings do not go with
// it. RESOURCE_EXHAUSTED: memory, of the host or the device. INTERNAL: a fault of CUDA.
// PERMISSION_DENIED. NOT_FOUND: nothing is there. DATA_LOSS: it is broken, or of another kind.
absl::Status WhyNotOpened(const std::string& path, std::exception_ptr failure);

}  // namespace llava
