#pragma once

// Picture files to RGB by OpenCV's codecs, with Pillow's rules for odd formats.

#include <cstdint>
#include <span>

#include "model/image/header.h"
#include "model/image/image.h"

namespace llava {

struct DecodeOptions {
  bool apply_exif = false;      // turn the picture upright as its EXIF orientation says
  bool alpha_on_white = false;  // paint transparent pictures on white instead of dropping alpha
};

// As Pillow's convert("RGB"): EXIF turn ignored, alpha dropped, palette resolved, grey repeated,
// 16-bit grey clipped to 255, 16-bit colour cut to its high byte, CMYK JPEG converted.
// Checks the header (ReadImageHeader) and completeness (CheckComplete of model/image/container.h)
// first, so cut-off files fail instead of coming out grey; damage inside a JPEG scan shows in the
// picture, as in Pillow. The codecs run on a thread of their own without access to our files, so
// what they print does not reach stderr. Throws std::invalid_argument saying what is wrong with the
// file, std::bad_alloc without memory, std::system_error if no thread can be started. Thread-safe.
Image DecodeImage(std::span<const uint8_t> file, const ImageLimits& limits = {},
                  const DecodeOptions& options = {});

}  // namespace llava
