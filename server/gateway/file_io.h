#pragma once

// Files that must survive: written whole or not at all.

#include <filesystem>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace llava {

// "cannot <what> <path>: <why>". RESOURCE_EXHAUSTED when the disk or a quota is full, else
// INTERNAL.
absl::Status FileError(absl::string_view what, const std::filesystem::path& path, int error);

// write() until all is written; `path` is for the message.
absl::Status WriteAll(int file, std::string_view bytes, const std::filesystem::path& path);
// Makes names in the folder durable.
absl::Status SyncFolder(const std::filesystem::path& folder);
// Temporary file beside it, fsync, rename, fsync of the folder.
absl::Status WriteFileDurably(const std::filesystem::path& path, std::string_view bytes);

}  // namespace llava
