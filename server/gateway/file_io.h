#pragma once

// Files that must survive: written whole or not at all.

#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace llava {

// No room where the gateway keeps its data: nobody's limit but a fault. UNAVAILABLE with RetryInfo
// and the reason DISK_FULL.
absl::Status DiskFull(const std::string& message);
// "cannot <what> <path>: <why>". DiskFull when the disk or a quota is, else INTERNAL.
absl::Status FileError(absl::string_view what, const std::filesystem::path& path, int error);

// All of a file. NOT_FOUND: it is not there; else what FileError says.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path);
// write() until all is written; `path` is for the message.
absl::Status WriteAll(int file, std::string_view bytes, const std::filesystem::path& path);
// A folder for its owner only, unless it is there already; what is missing above it is made as
// usual.
absl::Status MakePrivateFolder(const std::filesystem::path& path);
// Makes names in the folder durable.
absl::Status SyncFolder(const std::filesystem::path& folder);
// Temporary file beside it, fsync, rename, fsync of the folder.
absl::Status WriteFileDurably(const std::filesystem::path& path, std::string_view bytes);

}  // namespace llava
