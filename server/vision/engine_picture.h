#pragma once

// Pictures on their way; included by the files of the engine alone.

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/image/anyres.h"
#include "server/runtime/mutex.h"
#include "server/runtime/seconds.h"
#include "server/runtime/status.h"
#include "server/vision/engine.h"
#include "server/vision/features.h"

namespace llava {

inline constexpr std::chrono::milliseconds kEngineRetryAfter{200};

inline absl::Status EngineStoppingError() {
  return OverloadedError("vision: the tower is being taken away", kEngineRetryAfter);
}

// A picture between Post and its features. Const from the decoder on, but for what `mutex` guards:
// its tiles may be in batches of several workers.
struct VisionEngine::Picture {
  EncodeJob job;
  // Name of its features, from the decoder on; empty: the input is the caller's own tensor, whose
  // features nobody else asks for.
  std::string cache_key;
  Resolution size;
  Clock::time_point posted, decoded;
  double decode_seconds = 0;

  Mutex mutex;
  bool over LLAVA_GUARDED_BY(mutex) = false;
  size_t tiles_left LLAVA_GUARDED_BY(mutex) = 1;
  // Of each tile.
  std::vector<std::string> features LLAVA_GUARDED_BY(mutex) = std::vector<std::string>(1);
  bool begun LLAVA_GUARDED_BY(mutex) = false;  // a tile was in a batch
  Clock::time_point first_batch LLAVA_GUARDED_BY(mutex);
  EncodeTimes times LLAVA_GUARDED_BY(mutex);  // from the first batch on those of it
};

struct VisionEngine::Tile {
  std::shared_ptr<Picture> picture;
  size_t index = 0;
  std::vector<float> pixels;  // [3, S, S]
};

}  // namespace llava
