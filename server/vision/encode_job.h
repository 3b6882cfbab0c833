#pragma once

// What requests ask of a tower, as its engine takes it.

#include "absl/status/statusor.h"
#include "llava/v1/types.pb.h"
#include "server/vision/engine.h"

namespace llava {

// A job without its picture, of a spec that has passed CheckVisionSpec. INVALID_ARGUMENT naming the
// field: a layer that the tower does not have, too many canvases, or one that is not of 1 to
// kMaxTiles whole tiles.
absl::StatusOr<EncodeJob> JobOf(const v1::VisionSpec& spec, const TowerInfo& tower);

}  // namespace llava
