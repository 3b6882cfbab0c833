#include "model/datagen/png.h"

#include <cstdint>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>
#include <vector>

namespace llava {

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

}  // namespace llava
