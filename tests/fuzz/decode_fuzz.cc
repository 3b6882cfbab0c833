// Any bytes as a picture file: decoded and fitted, or refused by std::invalid_argument; nothing
// else may happen. An entry point for libFuzzer (clang++ -fsanitize=fuzzer) and for fuzz_main.cc.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <stdexcept>

#include "model/image/anyres.h"
#include "model/image/decode.h"

namespace {

// Larger pictures are slow to decode and show nothing new.
constexpr llava::ImageLimits kLimits = {
    .max_bytes = 1 << 20, .max_pixels = 1 << 18, .max_side = 4096};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> file(data, size);
  try {
    const llava::ImageHeader header = llava::ReadImageHeader(file, kLimits);
    const llava::Image image = llava::DecodeImage(
        file, kLimits, {.apply_exif = size % 2 == 0, .alpha_on_white = size % 3 == 0});
    const bool turned = static_cast<uint32_t>(image.width) == header.height &&
                        static_cast<uint32_t>(image.height) == header.width;
    const bool straight = static_cast<uint32_t>(image.width) == header.width &&
                          static_cast<uint32_t>(image.height) == header.height;
    if (!turned && !straight) std::abort();
    llava::PreprocessConfig config;
    config.image_size = 28;
    for (const llava::ImageMode mode : {llava::ImageMode::kCrop, llava::ImageMode::kPad}) {
      if (llava::FitToTower(image, mode, config).rgb.size() != 28 * 28 * 3) std::abort();
    }
    const llava::Resolution grid[] = {{28, 56}, {56, 28}, {56, 56}, {84, 28}};
    for (const llava::Image& tile : llava::AnyresTiles(image, grid, config)) {
      if (tile.rgb.size() != 28 * 28 * 3) std::abort();
    }
  } catch (const std::invalid_argument&) {
    return 0;  // says what is wrong with the file
  }
  return 0;
}
