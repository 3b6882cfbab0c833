#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "absl/status/status.h"

namespace llava {

// Whether the files of a version are what its manifest says: sizes and SHA-256. Reads no faster
// than `bytes_per_second` (0: no limit). NOT_FOUND, PERMISSION_DENIED, DATA_LOSS naming the
// file, or CANCELLED soon after `stop` says true.
absl::Status CheckVersionFiles(const std::filesystem::path& folder, uint64_t bytes_per_second,
                               const std::function<bool()>& stop);

}  // namespace llava
