#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/api_keys.h"

namespace llava {

// Adds a line for `key` to a keys file's text; all other lines stay as they are.
absl::StatusOr<std::string> AddKeyLine(const std::string& text, const ApiKey& key);
// Takes out the entry of that name. NOT_FOUND.
absl::StatusOr<std::string> RemoveKeyLines(const std::string& text, const std::string& name);

// llava-gateway keys add|list|revoke: edits a keys file, which a running gateway reads again.
// `argv[0]` is "keys". Returns the exit status.
int RunKeysCommand(int argc, const char* const* argv);

}  // namespace llava
