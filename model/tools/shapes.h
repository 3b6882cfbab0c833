#pragma once

// Decoders and towers of published models by name, for random weights.

#include <string>
#include <vector>

#include "model/config/model_config.h"

namespace llava {

std::vector<std::string> ShapeNames();
// Throws std::invalid_argument naming those that there are.
DecoderConfig DecoderShape(const std::string& name);

// The same of vision towers.
std::vector<std::string> VisionShapeNames();
VisionConfig VisionShape(const std::string& name);

}  // namespace llava
