#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/mapped_file.h"

namespace llava {

// By name in the folder.
using FilesInMemory = std::map<std::string, std::shared_ptr<const MappedFile>>;

// Compares every file of a version with its manifest, sizes first, and looks for weights that are
// NaN or infinite, reading each file once. `options`: progress, stop, bytes_per_second, in_memory.
// Returns the files of tensors with `in_memory`. Throws std::runtime_error listing all that differ
// (all sizes before anything is read), naming the path that cannot be read; OpenStopped.
FilesInMemory VerifyFiles(const std::filesystem::path& folder, const Manifest& manifest,
                          const OpenOptions& options);

}  // namespace llava
