#pragma once

#include <filesystem>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/tensor_file.h"

namespace llava {

// Compares every file of a version with its manifest, sizes first, and looks for weights that are
// NaN or infinite, reading each file once. `options`: progress, stop, bytes_per_second, threads,
// in_memory, side_by_side. With `in_memory` returns when all but the weights are checked; the files
// of weights are returned and wait for what is asked of them (TensorFile::Finish). Throws
// std::runtime_error listing all that differ (all sizes before anything is read), naming the path
// that cannot be read; OpenStopped.
TensorFiles VerifyFiles(const std::filesystem::path& folder, const Manifest& manifest,
                        const OpenOptions& options);

}  // namespace llava
