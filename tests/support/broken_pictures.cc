#include "tests/support/broken_pictures.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>

namespace llava {
namespace {

cv::Mat Picture(int type) {
  cv::Mat picture(37, 50, type);
  uint32_t state = 7;
  for (int y = 0; y < picture.rows; ++y) {
    for (size_t x = 0; x < picture.cols * picture.elemSize(); ++x) {
      state = state * 1664525u + 1013904223u;
      // Smooth, with some noise, so that every kind of block comes up.
      picture.ptr<uint8_t>(y)[x] = static_cast<uint8_t>(3 * x + 5 * y + (state >> 28));
    }
  }
  return picture;
}

std::vector<uint8_t> Encoded(const char* extension, int type,
                             const std::vector<int>& options = {}) {
  std::vector<uint8_t> bytes;
  if (!cv::imencode(extension, Picture(type), bytes, options)) {
    throw std::runtime_error(std::string("cannot write ") + extension);
  }
  return bytes;
}

void Append(std::vector<uint8_t>& to, const void* from, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  to.insert(to.end(), bytes, bytes + size);
}

void AppendBig(std::vector<uint8_t>& to, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) to.push_back(static_cast<uint8_t>(value >> shift));
}

void AppendChunk(std::vector<uint8_t>& png, const char* name, const std::vector<uint8_t>& data) {
  AppendBig(png, static_cast<uint32_t>(data.size()));
  const size_t begin = png.size();
  Append(png, name, 4);
  Append(png, data.data(), data.size());
  AppendBig(png, static_cast<uint32_t>(
                     crc32(0, png.data() + begin, static_cast<uInt>(png.size() - begin))));
}

std::vector<uint8_t> Compressed(const std::vector<uint8_t>& bytes) {
  uLongf size = compressBound(bytes.size());
  std::vector<uint8_t> result(size);
  if (compress2(result.data(), &size, bytes.data(), bytes.size(), 9) != Z_OK) {
    throw std::runtime_error("zlib");
  }
  result.resize(size);
  return result;
}

size_t Below(std::mt19937& random, size_t limit) { return limit == 0 ? 0 : random() % limit; }

void Break(std::vector<uint8_t>& file, std::mt19937& random) {
  if (file.empty()) return;
  const size_t at = Below(random, file.size());
  const size_t length = 1 + Below(random, std::min<size_t>(64, file.size() - at));
  const auto begin = file.begin() + static_cast<ptrdiff_t>(at);
  const auto end = begin + static_cast<ptrdiff_t>(length);
  constexpr uint8_t kTelling[] = {0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF};
  switch (random() % 8) {
    case 0:
      file.resize(at);
      break;
    case 1:
    case 2:
      for (size_t i = 0; i < 1 + random() % 4; ++i) {
        file[Below(random, file.size())] ^= static_cast<uint8_t>(1u << random() % 8);
      }
      break;
    case 3:
      std::fill(begin, end, kTelling[random() % std::size(kTelling)]);
      break;
    case 4:
      std::generate(begin, end, [&] { return static_cast<uint8_t>(random()); });
      break;
    case 5:
      file.erase(begin, end);
      break;
    case 6: {
      const std::vector<uint8_t> piece(begin, end);
      file.insert(file.begin() + static_cast<ptrdiff_t>(Below(random, file.size())), piece.begin(),
                  piece.end());
      break;
    }
    default:  // sizes, depths and lengths stand near the beginning
      file[Below(random, std::min<size_t>(64, file.size()))] =
          kTelling[random() % std::size(kTelling)];
  }
}

}  // namespace

std::vector<PictureFile> WholePictures(const std::filesystem::path& folder) {
  std::vector<PictureFile> files = {
      {"colour.png", Encoded(".png", CV_8UC3)},
      {"grey.png", Encoded(".png", CV_8UC1)},
      {"deep.png", Encoded(".png", CV_16UC3)},
      {"alpha.png", Encoded(".png", CV_8UC4)},
      {"baseline.jpg", Encoded(".jpg", CV_8UC3)},
      {"progressive.jpg", Encoded(".jpg", CV_8UC3, {cv::IMWRITE_JPEG_PROGRESSIVE, 1})},
      {"restarts.jpg", Encoded(".jpg", CV_8UC3, {cv::IMWRITE_JPEG_RST_INTERVAL, 2})},
      {"grey.jpg", Encoded(".jpg", CV_8UC1)},
      {"lossy.webp", Encoded(".webp", CV_8UC3, {cv::IMWRITE_WEBP_QUALITY, 60})},
      {"lossless.webp", Encoded(".webp", CV_8UC4, {cv::IMWRITE_WEBP_QUALITY, 101})},
      {"colour.bmp", Encoded(".bmp", CV_8UC3)},
      {"grey.bmp", Encoded(".bmp", CV_8UC1)},
      {"alpha.bmp", Encoded(".bmp", CV_8UC4)},
  };
  if (folder.empty()) return files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files.push_back({entry.path().filename().string(),
                     std::vector<uint8_t>(std::istreambuf_iterator<char>(file), {})});
  }
  std::sort(files.begin(), files.end(),
            [](const PictureFile& a, const PictureFile& b) { return a.name < b.name; });
  return files;
}

std::vector<uint8_t> Broken(const std::vector<PictureFile>& whole, std::mt19937& random) {
  std::vector<uint8_t> file = whole[Below(random, whole.size())].bytes;
  const size_t times = random() % 3 == 0 ? 1 + random() % 4 : 1;
  for (size_t i = 0; i < times; ++i) Break(file, random);
  return file;
}

std::vector<uint8_t> PngWithTexts(int count, size_t bytes) {
  std::vector<uint8_t> png;
  Append(png, "\x89PNG\r\n\x1a\n", 8);
  std::vector<uint8_t> header;
  AppendBig(header, 1);
  AppendBig(header, 1);
  Append(header, "\x08\x02\x00\x00\x00", 5);
  AppendChunk(png, "IHDR", header);
  std::vector<uint8_t> text = {'x', 0, 0};  // keyword, its end, the method
  const std::vector<uint8_t> packed = Compressed(std::vector<uint8_t>(bytes, 'a'));
  Append(text, packed.data(), packed.size());
  for (int i = 0; i < count; ++i) AppendChunk(png, "zTXt", text);
  AppendChunk(png, "IDAT", Compressed({0, 10, 20, 30}));
  AppendChunk(png, "IEND", {});
  return png;
}

}  // namespace llava
