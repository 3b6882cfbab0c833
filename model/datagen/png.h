#pragma once

#include <string>
#include <string_view>

#include "model/image/image.h"

namespace llava {

// The picture as the bytes of a PNG file. Throws std::runtime_error if it cannot be encoded.
std::string EncodePng(const Image& image);

// Whether every chunk of a PNG file is there, up to the last one, and has its checksum.
bool IsWholePng(std::string_view file);

}  // namespace llava
