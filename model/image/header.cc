#include "model/image/header.h"

#include <optional>
#include <stdexcept>
#include <string_view>

#include "model/image/byte_reader.h"
#include "model/image/jpeg_marker.h"

namespace llava {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kAllowed = "; allowed are PNG, JPEG, WebP and BMP";

[[noreturn]] void Fail(const std::string& what) { throw std::invalid_argument(what); }

std::optional<ImageFormat> FormatOf(const ByteReader& file) {
  if (file.Has(0, "\x89PNG\r\n\x1a\n"sv)) return ImageFormat::kPng;
  if (file.Has(0, "\xff\xd8\xff"sv)) return ImageFormat::kJpeg;
  if (file.Has(0, "RIFF"sv) && file.Has(8, "WEBP"sv)) return ImageFormat::kWebp;
  if (file.Has(0, "BM"sv)) return ImageFormat::kBmp;
  return std::nullopt;
}

// A short file that begins like an allowed format is broken, not foreign.
bool BeginsLikeAllowed(std::span<const uint8_t> file) {
  const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
  return "\x89PNG\r\n\x1a\n"sv.starts_with(bytes) || "\xff\xd8\xff"sv.starts_with(bytes) ||
         (bytes.size() < 12 && "RIFF"sv.starts_with(bytes.substr(0, 4)));
}

std::string GuessForeign(const ByteReader& file) {
  struct Sign {
    size_t at;
    std::string_view bytes;
    const char* name;
  };
  static constexpr Sign kSigns[] = {
      {0, "GIF8"sv, "a GIF picture"},
      {0, "%PDF"sv, "a PDF document"},
      {0, "II*\0"sv, "a TIFF picture"},
      {0, "MM\0*"sv, "a TIFF picture"},
      {4, "ftypavi"sv, "an AVIF picture"},
      {4, "ftyphei"sv, "a HEIC picture"},
      {4, "ftypmif1"sv, "a HEIC picture"},
      {4, "ftyp"sv, "an MP4 video"},
      {0, "\0\0\1\0"sv, "an icon"},
      {0, "\0\0\0\x0cjP"sv, "a JPEG 2000 picture"},
      {0, "\0\0\0\x0cJXL"sv, "a JPEG XL picture"},
      {0, "\xff\x0a"sv, "a JPEG XL picture"},
      {0, "8BPS"sv, "a Photoshop file"},
      {0, "PK\3\4"sv, "a ZIP archive"},
      {0, "\x1f\x8b"sv, "a gzip file"},
      {0, "RIFF"sv, "a RIFF sound or video"},
      {0, "data:"sv, "a data URL, not the bytes of a picture (decode its Base64 part)"},
      {0, "iVBORw0K"sv, "Base64 text of a PNG, not its bytes"},
      {0, "/9j/"sv, "Base64 text of a JPEG, not its bytes"},
      {0, "UklGR"sv, "Base64 text of a WebP, not its bytes"},
      {0, "<svg"sv, "an SVG drawing"},
      {0, "<?xml"sv, "an XML or SVG document"},
      {0, "<"sv, "an HTML page"},
      {0, "{"sv, "JSON text"},
  };
  for (const Sign& sign : kSigns) {
    if (file.Has(sign.at, sign.bytes)) return sign.name;
  }
  return "of an unknown format";
}

void ReadPng(const ByteReader& file, ImageHeader& header) {
  if (file.Big(8, 4) != 13 || (file.Need(12, 4), !file.Has(12, "IHDR"sv))) {
    Fail("the png file does not begin with an IHDR chunk of 13 bytes");
  }
  header.width = file.Big(16, 4);
  header.height = file.Big(20, 4);
  file.Need(24, 9);  // depth, colour type, methods and checksum
}

void ReadJpeg(const ByteReader& file, ImageHeader& header) {
  size_t at = 2;
  while (true) {
    const int marker = NextJpegMarker(file, at);
    if (StandsAlone(marker)) continue;
    if (marker == 0xd8 || marker == 0xd9 || marker == 0xda || marker == 0x00) {
      Fail("the jpeg file has no frame header before its data");
    }
    const uint32_t length = file.Big(at, 2);
    if (length < 2) Fail("the jpeg file has a segment of length " + std::to_string(length));
    const bool frame =
        marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    if (frame) {
      if (marker > 0xc2 && marker != 0xc9 && marker != 0xca) {
        Fail("lossless and hierarchical jpeg files are not supported");
      }
      const int depth = file.U8(at + 2), components = file.U8(at + 7);
      if (depth != 8) Fail("jpeg files of " + std::to_string(depth) + " bits are not supported");
      if (components != 1 && components != 3 && components != 4) {
        Fail("the jpeg file has " + std::to_string(components) + " colour components");
      }
      header.height = file.Big(at + 3, 2);
      header.width = file.Big(at + 5, 2);
      file.Need(at, length);
      return;
    }
    file.Need(at, length);
    at += length;
  }
}

void ReadWebp(const ByteReader& file, ImageHeader& header) {
  constexpr size_t kData = 20;  // after RIFF, size, WEBP, chunk name, chunk size
  file.Need(0, kData);
  if (file.Has(12, "VP8 "sv)) {
    if (file.Big(kData + 3, 3) != 0x9d012a || (file.U8(kData) & 1) != 0) {
      Fail("the webp file does not begin with a key frame");
    }
    header.width = file.Little(kData + 6, 2) & 0x3fff;
    header.height = file.Little(kData + 8, 2) & 0x3fff;
  } else if (file.Has(12, "VP8L"sv)) {
    if (file.U8(kData) != 0x2f) Fail("the webp file has no lossless signature");
    const uint32_t bits = file.Little(kData + 1, 4);
    header.width = (bits & 0x3fff) + 1;
    header.height = (bits >> 14 & 0x3fff) + 1;
  } else if (file.Has(12, "VP8X"sv)) {
    constexpr int kAnimation = 0x02;
    if (file.U8(kData) & kAnimation) {
      Fail("animated webp pictures are not supported: send a still picture");
    }
    header.width = file.Little(kData + 4, 3) + 1;
    header.height = file.Little(kData + 7, 3) + 1;
  } else {
    Fail("the webp file begins with neither VP8, VP8L nor VP8X data");
  }
}

void ReadBmp(const ByteReader& file, ImageHeader& header) {
  constexpr size_t kDib = 14;
  const uint32_t dib_size = file.Little(kDib, 4);
  if (dib_size == 12) {
    header.width = file.Little(kDib + 4, 2);
    header.height = file.Little(kDib + 6, 2);
  } else if (dib_size >= 40 && dib_size <= 124) {
    const auto width = static_cast<int32_t>(file.Little(kDib + 4, 4));
    const auto height = static_cast<int32_t>(file.Little(kDib + 8, 4));
    if (width < 0) Fail("the bmp file has a width of " + std::to_string(width) + " pixels");
    header.width = static_cast<uint32_t>(width);
    // Negative: rows from top to bottom.
    header.height = height < 0 ? 0u - static_cast<uint32_t>(height) : static_cast<uint32_t>(height);
  } else {
    Fail("the bmp file has a header of unknown size " + std::to_string(dib_size));
  }
  file.Need(kDib, dib_size);
}

}  // namespace

const char* ToString(ImageFormat format) {
  switch (format) {
    case ImageFormat::kPng:
      return "png";
    case ImageFormat::kJpeg:
      return "jpeg";
    case ImageFormat::kWebp:
      return "webp";
    case ImageFormat::kBmp:
      return "bmp";
  }
  return "unknown";
}

ImageHeader ReadImageHeader(std::span<const uint8_t> file, const ImageLimits& limits) {
  if (file.empty()) Fail("the picture file is empty" + std::string(kAllowed));
  if (file.size() > limits.max_bytes) {
    Fail("the picture file has " + std::to_string(file.size()) + " bytes; at most " +
         std::to_string(limits.max_bytes) + " are allowed");
  }
  const std::optional<ImageFormat> format = FormatOf({file, ""});
  if (!format) {
    if (BeginsLikeAllowed(file)) {
      Fail("the picture file is cut off after " + std::to_string(file.size()) + " bytes");
    }
    Fail("the file is " + GuessForeign({file, ""}) + std::string(kAllowed));
  }
  ImageHeader header{*format};
  const ByteReader reader(file, ToString(*format));
  switch (*format) {
    case ImageFormat::kPng:
      ReadPng(reader, header);
      break;
    case ImageFormat::kJpeg:
      ReadJpeg(reader, header);
      break;
    case ImageFormat::kWebp:
      ReadWebp(reader, header);
      break;
    case ImageFormat::kBmp:
      ReadBmp(reader, header);
      break;
  }
  const std::string size =
      std::to_string(header.width) + " x " + std::to_string(header.height) + " pixels";
  if (header.width == 0 || header.height == 0) {
    Fail("the " + std::string(ToString(*format)) + " file says it has " + size);
  }
  if (header.width > limits.max_side || header.height > limits.max_side) {
    Fail("the picture has " + size + "; at most " + std::to_string(limits.max_side) +
         " a side are allowed");
  }
  const uint64_t pixels = uint64_t{header.width} * header.height;
  if (pixels > limits.max_pixels) {
    Fail("the picture has " + size + ", " + std::to_string(pixels) + " in all; at most " +
         std::to_string(limits.max_pixels) + " are allowed");
  }
  return header;
}

}  // namespace llava
