#include "model/datagen/png.h"

#include <array>
#include <cstdint>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>
#include <vector>

namespace llava {
namespace {

uint32_t BigEndian(std::string_view bytes) {
  uint32_t value = 0;
  for (const char byte : bytes.substr(0, 4)) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

// As PNG and zip have it.
uint32_t Crc32(std::string_view bytes) {
  static constexpr auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < table.size(); ++i) {
      table[i] = i;
      for (int bit = 0; bit < 8; ++bit) {
        table[i] = table[i] >> 1 ^ ((table[i] & 1) != 0 ? 0xEDB88320u : 0);
      }
    }
    return table;
  }();
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint8_t>(byte)) & 0xFF];
  }
  return ~crc;
}

}  // namespace

std::string EncodePng(const Image& image) {
  cv::Mat pixels(image.height, image.width, CV_8UC3);  // blue first, as OpenCV wants it
  for (size_t i = 0; i < image.rgb.size(); i += 3) {
    for (size_t c = 0; c < 3; ++c) pixels.data[i + c] = image.rgb[i + 2 - c];
  }
  std::vector<uint8_t> bytes;
  if (!cv::imencode(".png", pixels, bytes, {cv::IMWRITE_PNG_COMPRESSION, 3})) {
    throw std::runtime_error("a picture of " + std::to_string(image.width) + " x " +
                             std::to_string(image.height) + " pixels cannot be encoded as PNG");
  }
  return {bytes.begin(), bytes.end()};
}

bool IsWholePng(std::string_view file) {
  constexpr std::string_view kSignature = "\x89PNG\r\n\x1A\n";
  constexpr size_t kAround = 12;  // bytes of a chunk besides its data: length, type, checksum
  if (!file.starts_with(kSignature)) return false;
  file.remove_prefix(kSignature.size());
  while (file.size() >= kAround) {
    const size_t length = BigEndian(file);
    if (length > file.size() - kAround) return false;
    const std::string_view checked = file.substr(4, 4 + length);
    if (BigEndian(file.substr(8 + length)) != Crc32(checked)) return false;
    if (checked.starts_with("IEND")) return true;
    file.remove_prefix(length + kAround);
  }
  return false;
}

}  // namespace llava
