#include "model/image/container.h"

#include <optional>
#include <stdexcept>

#include "model/image/byte_reader.h"
#include "model/image/jpeg_marker.h"

namespace llava {
namespace {

using namespace std::string_view_literals;

constexpr int kEndOfImage = 0xd9, kStartOfScan = 0xda, kApp1 = 0xe1;
// Progressive files have about ten; each costs a pass over all of the picture.
constexpr int kMostScans = 100;

// Position of the marker that ends the entropy-coded data at `at`.
size_t EndOfScan(const ByteReader& file, size_t at) {
  while (true) {
    if (file.U8(at) == 0xff) {
      const int next = file.U8(at + 1);
      const bool data = next == 0x00 || next == 0xff || (next >= 0xd0 && next <= 0xd7);
      if (!data) return at;
      if (next != 0xff) ++at;
    }
    ++at;
  }
}

void CheckJpeg(const ByteReader& file) {
  size_t at = 2;
  int scans = 0;
  while (true) {
    const int marker = NextJpegMarker(file, at);
    if (marker == kEndOfImage) break;
    if (StandsAlone(marker)) continue;
    const uint32_t length = file.Big(at, 2);
    file.Need(at, length);
    if (length < 2) {
      throw std::invalid_argument("the jpeg file has a segment of length " +
                                  std::to_string(length));
    }
    at += length;
    if (marker == kStartOfScan) {
      if (++scans > kMostScans) {
        throw std::invalid_argument("the jpeg file has more than " + std::to_string(kMostScans) +
                                    " scans");
      }
      at = EndOfScan(file, at);
    }
  }
  if (scans == 0) throw std::invalid_argument("the jpeg file has no picture data");
}

void CheckPng(const ByteReader& file) {
  size_t at = 8;
  while (true) {
    const uint32_t length = file.Big(at, 4);
    file.Need(at + 8, size_t{length} + 4);
    if (file.Has(at + 4, "IEND"sv)) return;
    at += size_t{length} + 12;
  }
}

void CheckBmp(const ByteReader& file, const ImageHeader& header) {
  constexpr size_t kDib = 14;
  const bool core = file.Little(kDib, 4) == 12;
  const uint32_t bits = core ? file.Little(kDib + 10, 2) : file.Little(kDib + 14, 2);
  const uint32_t compression = core ? 0 : file.Little(kDib + 16, 4);
  constexpr uint32_t kRgb = 0, kBitfields = 3;
  if (bits == 0 || bits > 32) {
    throw std::invalid_argument("the bmp file has " + std::to_string(bits) + " bits per pixel");
  }
  if (compression != kRgb && compression != kBitfields) return;
  const uint64_t stride = (uint64_t{header.width} * bits + 31) / 32 * 4;
  file.Need(file.Little(10, 4), stride * header.height);
}

// Orientation in a TIFF block, which is what EXIF is.
std::optional<int> TiffOrientation(const ByteReader& tiff) {
  const bool little = tiff.Has(0, "II*\0"sv);
  if (!little && !tiff.Has(0, "MM\0*"sv)) return std::nullopt;
  const auto number = [&](size_t at, int count) {
    return little ? tiff.Little(at, count) : tiff.Big(at, count);
  };
  constexpr uint32_t kOrientation = 0x0112, kShort = 3;
  const size_t directory = number(4, 4);
  const uint32_t entries = number(directory, 2);
  for (uint32_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + size_t{i} * 12;
    if (number(entry, 2) == kOrientation && number(entry + 2, 2) == kShort) {
      const uint32_t value = number(entry + 8, 2);
      if (value >= 1 && value <= 8) return static_cast<int>(value);
    }
  }
  return std::nullopt;
}

std::optional<int> JpegOrientation(const ByteReader& file) {
  size_t at = 2;
  while (true) {
    const int marker = NextJpegMarker(file, at);
    if (marker == kEndOfImage || marker == kStartOfScan) return std::nullopt;
    if (StandsAlone(marker)) continue;
    const uint32_t length = file.Big(at, 2);
    constexpr std::string_view kExif = "Exif\0\0"sv;
    if (marker == kApp1 && length >= 2 + kExif.size() && file.Has(at + 2, kExif)) {
      return TiffOrientation(file.Sub(at + 2 + kExif.size(), length - 2 - kExif.size()));
    }
    if (length < 2) return std::nullopt;
    at += length;
  }
}

std::optional<int> PngOrientation(const ByteReader& file) {
  size_t at = 8;
  while (!file.Has(at + 4, "IEND"sv)) {
    const uint32_t length = file.Big(at, 4);
    if (file.Has(at + 4, "eXIf"sv)) return TiffOrientation(file.Sub(at + 8, length));
    at += size_t{length} + 12;
  }
  return std::nullopt;
}

std::optional<int> WebpOrientation(const ByteReader& file) {
  size_t at = 12;
  while (at < file.size()) {
    const uint32_t length = file.Little(at + 4, 4);
    if (file.Has(at, "EXIF"sv)) {
      constexpr std::string_view kExif = "Exif\0\0"sv;  // some writers keep JPEG's preamble
      const size_t skip = length >= kExif.size() && file.Has(at + 8, kExif) ? kExif.size() : 0;
      return TiffOrientation(file.Sub(at + 8 + skip, length - skip));
    }
    at += 8 + size_t{length} + (length & 1);
  }
  return std::nullopt;
}

}  // namespace

void CheckComplete(std::span<const uint8_t> file, const ImageHeader& header) {
  const ByteReader reader(file, ToString(header.format));
  switch (header.format) {
    case ImageFormat::kPng:
      return CheckPng(reader);
    case ImageFormat::kJpeg:
      return CheckJpeg(reader);
    case ImageFormat::kWebp:
      return reader.Need(8, reader.Little(4, 4));
    case ImageFormat::kBmp:
      return CheckBmp(reader, header);
  }
}

std::vector<uint8_t> WithoutTexts(std::span<const uint8_t> file, const ImageHeader& header) {
  if (header.format != ImageFormat::kPng) return {};
  const ByteReader reader(file, ToString(header.format));
  constexpr size_t kSignature = 8;
  std::vector<uint8_t> kept;
  // Chunks are copied from `begin` on once one has been left out.
  size_t at = kSignature, begin = 0;
  const auto keep = [&](size_t end) {
    kept.insert(kept.end(), file.begin() + static_cast<ptrdiff_t>(begin),
                file.begin() + static_cast<ptrdiff_t>(end));
  };
  while (true) {
    const size_t end = at + size_t{reader.Big(at, 4)} + 12;
    bool text = false;
    for (const std::string_view name : {"zTXt"sv, "iTXt"sv, "tEXt"sv, "iCCP"sv}) {
      text |= reader.Has(at + 4, name);
    }
    if (text) {
      keep(at);
      begin = end;
    }
    if (reader.Has(at + 4, "IEND"sv)) {
      if (begin != 0) keep(end);
      return kept;
    }
    at = end;
  }
}

int ExifOrientation(std::span<const uint8_t> file, const ImageHeader& header) {
  const ByteReader reader(file, ToString(header.format));
  try {
    switch (header.format) {
      case ImageFormat::kPng:
        return PngOrientation(reader).value_or(1);
      case ImageFormat::kJpeg:
        return JpegOrientation(reader).value_or(1);
      case ImageFormat::kWebp:
        return WebpOrientation(reader).value_or(1);
      case ImageFormat::kBmp:
        return 1;
    }
  } catch (const std::invalid_argument&) {
    // Broken metadata must not cost the picture.
  }
  return 1;
}

}  // namespace llava
