#pragma once

// Decoders of published models by name, for random weights.

#include <string>
#include <vector>

#include "model/config/model_config.h"

namespace llava {

std::vector<std::string> ShapeNames();
// Throws std::invalid_argument naming those that there are.
DecoderConfig DecoderShape(const std::string& name);

}  // namespace llava
