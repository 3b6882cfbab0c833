#pragma once

// The canvases of the anyres mode, as requests name them.

#include <vector>

#include "absl/status/statusor.h"
#include "llava/v1/types.pb.h"
#include "model/config/model_config.h"

namespace llava {

// Of a spec that has passed CheckVisionSpec; none unless its mode is anyres. INVALID_ARGUMENT
// naming the canvas: too many, or not of 1 to kMaxTiles whole tiles.
absl::StatusOr<std::vector<Resolution>> ReadGrid(const v1::VisionSpec& spec,
                                                 const PreprocessConfig& preprocess);

}  // namespace llava
