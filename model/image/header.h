#pragma once

// What a picture file says of itself, read from its first bytes: checked before any decoder runs,
// here and in the gateway. Needs nothing but the standard library.

#include <cstdint>
#include <span>
#include <string>

namespace llava {

enum class ImageFormat { kPng, kJpeg, kWebp, kBmp };
const char* ToString(ImageFormat format);  // "png", "jpeg", "webp", "bmp"

struct ImageHeader {
  ImageFormat format;
  uint32_t width = 0;
  uint32_t height = 0;
};

struct ImageLimits {
  uint64_t max_bytes = 20u << 20;
  uint64_t max_pixels = 64'000'000;
  uint32_t max_side = 32'768;
};

// Throws std::invalid_argument saying what is wrong and what is allowed: an empty file, a foreign
// format (the guess is named: GIF, PDF, HTML ...), a header that is cut off or lies (zero sides),
// more bytes, pixels or side length than `limits`.
ImageHeader ReadImageHeader(std::span<const uint8_t> file, const ImageLimits& limits);

}  // namespace llava
