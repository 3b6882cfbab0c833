#pragma once

#include <string>

#include "model/image/image.h"

namespace llava {

// The picture as the bytes of a PNG file. Throws std::runtime_error if it cannot be encoded.
std::string EncodePng(const Image& image);

}  // namespace llava
