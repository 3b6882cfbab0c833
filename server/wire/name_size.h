#pragma once

// How long names in requests may be, the same in gateway and services: errors and logs quote them.

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace llava {

// INVALID_ARGUMENT "<field> has <bytes> bytes, allowed are <limit>".
absl::Status CheckBytes(absl::string_view field, size_t bytes, size_t limit);
// Of a model, perhaps with @LABEL or @VERSION.
absl::Status CheckModelBytes(absl::string_view field, const std::string& name);
absl::Status CheckLabelBytes(absl::string_view field, const std::string& label);

}  // namespace llava
