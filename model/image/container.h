#pragma once

// What lies around the pixels of a picture file. Needs nothing but the standard library.

#include <cstdint>
#include <span>
#include <vector>

#include "model/image/header.h"

namespace llava {

// Throws std::invalid_argument if the file ends before its picture does, which some decoders would
// paint over in silence:
//   JPEG  every segment and scan up to the end-of-image marker is there (a file without that marker
//         counts as cut off; damage inside a scan cannot be seen without decoding it), and there
//         are no more scans than a decoder gets through in reasonable time
//   PNG   every chunk up to IEND is there (checksums are the decoder's business)
//   WebP  the size in the RIFF header is there
//   BMP   the rows of an uncompressed picture are there
// `file` has passed ReadImageHeader. Bytes behind the picture are allowed.
void CheckComplete(std::span<const uint8_t> file, const ImageHeader& header);

// A PNG file without what decoders unpack and nobody looks at: texts and profiles, each of which
// may grow a thousandfold. Empty if it has none, or is no PNG. `file` has passed CheckComplete.
std::vector<uint8_t> WithoutTexts(std::span<const uint8_t> file, const ImageHeader& header);

// EXIF orientation, 1..8: how the stored picture has to be turned to stand upright (1: not at all).
// 1 too if there is none, or none that makes sense. Looks in JPEG, PNG and WebP files.
int ExifOrientation(std::span<const uint8_t> file, const ImageHeader& header);

}  // namespace llava
