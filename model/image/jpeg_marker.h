#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "model/image/byte_reader.h"

namespace llava {

// Marker of a JPEG file at `at`, which moves behind it; fill bytes may precede it. Throws
// std::invalid_argument if there is none.
inline int NextJpegMarker(const ByteReader& file, size_t& at) {
  if (file.U8(at) != 0xff) {
    throw std::invalid_argument("the jpeg file has no marker at byte " + std::to_string(at));
  }
  while (file.U8(at) == 0xff) ++at;
  return file.U8(at++);
}

// No segment belongs to it.
inline bool StandsAlone(int jpeg_marker) {
  return jpeg_marker == 0x01 || (jpeg_marker >= 0xd0 && jpeg_marker <= 0xd7);
}

}  // namespace llava
