#pragma once

#include "server/runtime/service_process.h"
#include "server/runtime/settings.h"
#include "server/vision/engine.h"
#include "server/vision/picture_encoder.h"

namespace llava {

// Everything llava-vision can be told.
struct VisionOptions {
  ProcessOptions process;
  TowerOptions tower;
  VisionEngine::Options engine;

  VisionOptions();
  void Declare(Settings& settings);
};

}  // namespace llava
