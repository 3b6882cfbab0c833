#pragma once

// The file of --keys-file, as it is on the disk now. ApiKeys follows its changes.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/gateway/api_keys.h"

namespace llava {

// INVALID_ARGUMENT with line and reason, NOT_FOUND if it cannot be opened; the message names file
// and flag.
absl::StatusOr<std::vector<ApiKey>> ReadApiKeys(const std::string& path);

}  // namespace llava
