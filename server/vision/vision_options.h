#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "server/lifecycle/lifecycle_options.h"
#include "server/runtime/service_process.h"
#include "server/runtime/settings.h"
#include "server/vision/engine.h"
#include "server/vision/picture_encoder.h"

namespace llava {

// Everything llava-vision can be told.
struct VisionOptions {
  ProcessOptions process;
  LifecycleOptions lifecycle;
  TowerOptions tower;  // `model` comes from the manager
  VisionEngine::Options engine;
  uint64_t feature_cache_bytes = 256u << 20;
  std::string feature_cache_dir;  // empty: no disk tier
  uint64_t feature_cache_disk_bytes = 4ull << 30;

  VisionOptions();
  void Declare(Settings& settings);

 private:
  absl::Status Check();

  std::string exif_ = "ignore";
  std::string preferred_batch_;
};

}  // namespace llava
