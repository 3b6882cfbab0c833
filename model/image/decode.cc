#include "model/image/decode.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <new>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "model/image/container.h"

namespace llava {
namespace {

[[noreturn]] void Fail(const ImageHeader& header, const std::string& what) {
  throw std::invalid_argument("the " + std::string(ToString(header.format)) + " file " + what);
}

// Gives the calling thread a file descriptor table of its own with stderr leading nowhere: libpng,
// libjpeg and OpenCV print their complaints there and offer no way to stop them. Where the kernel
// refuses, nothing changes. Asks the kernel itself where the thread sanitizer would listen: it
// takes descriptors for common to all threads and finds races between tables.
void MuteThread() {
  if (close_range(3, ~0U, CLOSE_RANGE_UNSHARE) != 0) return;
  const long null = syscall(SYS_openat, AT_FDCWD, "/dev/null", O_WRONLY | O_CLOEXEC);
  if (null >= 0) syscall(SYS_dup3, null, STDERR_FILENO, 0);
}

cv::Mat Decode(std::span<const uint8_t> file, const ImageHeader& header) {
  std::packaged_task<cv::Mat()> task([&] {
    MuteThread();
    // OpenCV does not write to its input.
    const cv::Mat bytes(1, static_cast<int>(file.size()), CV_8UC1,
                        const_cast<uint8_t*>(file.data()));
    return cv::imdecode(bytes, cv::IMREAD_UNCHANGED);
  });
  std::future<cv::Mat> result = task.get_future();
  std::thread thread(std::move(task));
  thread.join();
  cv::Mat pixels;
  try {
    pixels = result.get();
  } catch (const cv::Exception& error) {
    if (error.code == cv::Error::StsNoMem) throw std::bad_alloc();  // no fault of the file
    Fail(header, "cannot be decoded: " + error.err);
  }
  if (pixels.empty()) Fail(header, "cannot be decoded: its data are damaged");
  if (pixels.cols != static_cast<int>(header.width) ||
      pixels.rows != static_cast<int>(header.height)) {
    Fail(header, "holds " + std::to_string(pixels.cols) + " x " + std::to_string(pixels.rows) +
                     " pixels, its header says " + std::to_string(header.width) + " x " +
                     std::to_string(header.height));
  }
  return pixels;
}

// Colour of a half-transparent pixel on white: Pillow's alpha_composite in its integers.
uint8_t OnWhite(uint32_t value, uint32_t alpha) {
  constexpr int kBits = 7;
  const uint32_t weight = alpha << kBits;
  const uint32_t rest = (255u << kBits) - weight;
  const uint32_t sum = value * weight + 255 * rest + (0x80u << kBits);
  return static_cast<uint8_t>(((sum >> 8) + sum) >> 8 >> kBits);
}

// One row of 1, 3 (BGR) or 4 (BGRA) channels to RGB. Bits beyond 8: grey is clipped, colour cut.
template <typename T>
void ConvertRow(const T* in, int channels, int width, bool on_white, uint8_t* out) {
  const auto colour = [](T value) {
    return static_cast<uint8_t>(sizeof(T) == 2 ? value >> 8 : value);
  };
  for (int x = 0; x < width; ++x, in += channels, out += 3) {
    if (channels == 1) {
      std::fill(out, out + 3, static_cast<uint8_t>(std::min<unsigned>(in[0], 255)));
      continue;
    }
    for (int c = 0; c < 3; ++c) out[c] = colour(in[2 - c]);
    if (on_white) {
      for (int c = 0; c < 3; ++c) out[c] = OnWhite(out[c], colour(in[3]));
    }
  }
}

Image ToRgb(const cv::Mat& pixels, const ImageHeader& header, bool alpha_on_white) {
  const int channels = pixels.channels();
  if ((channels != 1 && channels != 3 && channels != 4) ||
      (pixels.depth() != CV_8U && pixels.depth() != CV_16U)) {
    Fail(header, "has an unsupported pixel type");
  }
  // The fourth byte of a BMP pixel is padding, not alpha.
  const bool on_white = alpha_on_white && channels == 4 && header.format != ImageFormat::kBmp;
  const size_t line = static_cast<size_t>(pixels.cols) * 3;
  Image image{pixels.cols, pixels.rows, std::vector<uint8_t>(line * pixels.rows)};
  for (int y = 0; y < pixels.rows; ++y) {
    uint8_t* out = &image.rgb[y * line];
    if (pixels.depth() == CV_8U) {
      ConvertRow(pixels.ptr<uint8_t>(y), channels, pixels.cols, on_white, out);
    } else {
      ConvertRow(pixels.ptr<uint16_t>(y), channels, pixels.cols, on_white, out);
    }
  }
  return image;
}

// Orientation 1..8: 2-4 mirror and turn by 180 degrees, 5-8 also swap the sides.
Image Turn(const Image& image, int orientation) {
  const bool swap = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image turned{swap ? image.height : image.width, swap ? image.width : image.height,
               std::vector<uint8_t>(image.rgb.size())};
  uint8_t* out = turned.rgb.data();
  for (int y = 0; y < turned.height; ++y) {
    for (int x = 0; x < turned.width; ++x, out += 3) {
      const int column = swap ? y : x, row = swap ? x : y;  // in the stored picture
      const size_t from_x = flip_x ? image.width - 1 - column : column;
      const size_t from_y = flip_y ? image.height - 1 - row : row;
      std::copy_n(&image.rgb[(from_y * image.width + from_x) * 3], 3, out);
    }
  }
  return turned;
}

}  // namespace

Image DecodeImage(std::span<const uint8_t> file, const ImageLimits& limits,
                  const DecodeOptions& options) {
  const ImageHeader header = ReadImageHeader(file, limits);
  CheckComplete(file, header);
  const std::vector<uint8_t> plain = WithoutTexts(file, header);
  Image image = ToRgb(Decode(plain.empty() ? file : plain, header), header, options.alpha_on_white);
  const int orientation = options.apply_exif ? ExifOrientation(file, header) : 1;
  return orientation == 1 ? image : Turn(image, orientation);
}

}  // namespace llava
