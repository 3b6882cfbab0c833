#pragma once

// Newer ways of computing on GPUs, each with an older one behind it that gives the same results
// within rounding: to be switched off where a device or driver shows a fault. Thread-safe.

#include <cstdint>

namespace llava::ops {

enum class Feature : uint8_t {
  kFlash,     // training: attention over sequences of any lengths without padding
  kNorm,      // training: LibTorch's RMS norm as one operation
  kSampling,  // serving: the next token is drawn on the device
  kTiles,     // serving: products of 17 to 64 rows with packed weights by tiles in shared memory
  kStream,    // serving: products of one row, or up to eight with packed weights, that read ahead
};

// At first all are on but those whose names stand in the environment's LLAVA_CUDA_WITHOUT, with
// commas between: flash, norm, sampling, tiles, stream. Throws std::invalid_argument for another
// name.
bool Enabled(Feature feature);
// For the whole process.
void Enable(Feature feature, bool on);

// This build has kernels for GPUs: it is of the preset cuda.
bool BuiltWithCuda();

}  // namespace llava::ops
