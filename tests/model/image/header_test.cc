#include "model/image/header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>

#include "model/image/container.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

using Bytes = std::vector<uint8_t>;
using namespace std::string_literals;
using testing::AllOf;
using testing::HasSubstr;

std::filesystem::path Pictures() { return FixturesDir() / "images"; }

Bytes ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

Bytes ToVector(const std::string& text) { return Bytes(text.begin(), text.end()); }

std::string Little(uint32_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

Bytes Webp(const std::string& chunk, const std::string& data) {
  return ToVector("RIFF" + Little(static_cast<uint32_t>(data.size() + 12), 4) + "WEBP" + chunk +
                  Little(static_cast<uint32_t>(data.size()), 4) + data);
}

Bytes Bmp(int32_t width, int32_t height) {
  return ToVector("BM" + Little(58, 4) + Little(0, 4) + Little(54, 4) + Little(40, 4) +
                  Little(static_cast<uint32_t>(width), 4) +
                  Little(static_cast<uint32_t>(height), 4) + Little(1, 2) + Little(24, 2) +
                  std::string(24, '\0') + "rgb\0"s);
}

std::string ErrorOf(const Bytes& file, const ImageLimits& limits = {}) {
  try {
    ReadImageHeader(file, limits);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

void ExpectHeader(const Bytes& file, ImageFormat format, uint32_t width, uint32_t height) {
  const ImageHeader header = ReadImageHeader(file, {});
  EXPECT_EQ(header.format, format);
  EXPECT_EQ(header.width, width);
  EXPECT_EQ(header.height, height);
}

TEST(ImageHeaderTest, ReadsEveryFormat) {
  ExpectHeader(ToVector("\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x01\x2c\0\0\0\x29\x08\2\0\0\0crc."s),
               ImageFormat::kPng, 300, 41);
  ExpectHeader(ToVector("\xff\xd8\xff\xe0\0\4..\xff\xff\xc2\0\x0b\x08\0\x29\x01\x2c\1\1\x11\0"s),
               ImageFormat::kJpeg, 300, 41);
  ExpectHeader(Bmp(30, 20), ImageFormat::kBmp, 30, 20);
  ExpectHeader(Bmp(30, -20), ImageFormat::kBmp, 30, 20);
  ExpectHeader(ToVector("BM" + std::string(12, '\0') + Little(12, 4) + Little(7, 2) + Little(9, 2) +
                        std::string(4, '\1')),
               ImageFormat::kBmp, 7, 9);
  ExpectHeader(Webp("VP8 ", "\x10\0\0\x9d\x01\x2a"s + Little(300, 2) + Little(0x4000 + 41, 2)),
               ImageFormat::kWebp, 300, 41);
  ExpectHeader(Webp("VP8L", "\x2f" + Little(299 | 40 << 14, 4)), ImageFormat::kWebp, 300, 41);
  ExpectHeader(Webp("VP8X", Little(0x10, 4) + Little(299, 3) + Little(40, 3)), ImageFormat::kWebp,
               300, 41);
}

TEST(ImageHeaderTest, NamesForeignFormats) {
  EXPECT_EQ(ErrorOf({}), "the picture file is empty; allowed are PNG, JPEG, WebP and BMP");
  const std::pair<std::string, const char*> files[] = {{"GIF89a......", "a GIF picture"},
                                                       {"%PDF-1.7", "a PDF document"},
                                                       {"<!DOCTYPE html>", "an HTML page"},
                                                       {"<svg xmlns=", "an SVG drawing"},
                                                       {"\0\0\0\x18"
                                                        "ftypavif"s,
                                                        "an AVIF"},
                                                       {"\0\0\0\x18"
                                                        "ftypheic"s,
                                                        "a HEIC"},
                                                       {"II*\0...."s, "a TIFF"},
                                                       {"PK\3\4", "a ZIP"},
                                                       {"{\"a\": 1}", "JSON"},
                                                       {"data:image/png;base64,", "a data URL"},
                                                       {"iVBORw0KGgo=", "Base64"},
                                                       {"hello", "unknown format"},
                                                       {"RIFF....WAVEfmt ", "a RIFF"},
                                                       {"\1\2\3\4", "unknown format"}};
  for (const auto& [bytes, name] : files) {
    EXPECT_THAT(ErrorOf(ToVector(bytes)), AllOf(HasSubstr(name), HasSubstr("allowed are")));
  }
}

TEST(ImageHeaderTest, ChecksLimits) {
  const Bytes file = Bmp(300, 200);
  EXPECT_EQ(ErrorOf(file, {.max_pixels = 60'000}), "no error");
  EXPECT_THAT(ErrorOf(file, {.max_pixels = 59'999}),
              AllOf(HasSubstr("300 x 200"), HasSubstr("60000"), HasSubstr("59999")));
  EXPECT_THAT(ErrorOf(file, {.max_side = 299}), AllOf(HasSubstr("300 x 200"), HasSubstr("299")));
  EXPECT_THAT(ErrorOf(file, {.max_bytes = 57}), AllOf(HasSubstr("58 bytes"), HasSubstr("57")));
}

TEST(ImageHeaderTest, RefusesHeadersThatLie) {
  EXPECT_THAT(ErrorOf(Bmp(0, 5)), HasSubstr("0 x 5"));
  EXPECT_THAT(ErrorOf(Bmp(5, 0)), HasSubstr("5 x 0"));
  EXPECT_THAT(ErrorOf(Bmp(-5, 5)), HasSubstr("-5"));
  EXPECT_THAT(ErrorOf(Bmp(5, INT32_MIN)), HasSubstr("2147483648"));
  EXPECT_THAT(ErrorOf(Webp("VP8X", Little(0x02, 4) + Little(9, 3) + Little(9, 3))),
              HasSubstr("animated"));
  EXPECT_THAT(ErrorOf(Webp("ALPH", "0123456789")), HasSubstr("neither"));
  EXPECT_THAT(ErrorOf(ToVector("\xff\xd8\xff\xd9")), HasSubstr("no frame header"));
  EXPECT_THAT(ErrorOf(ToVector("\xff\xd8\xff\xe0\0\1"s)), HasSubstr("length 1"));
  EXPECT_THAT(ErrorOf(ToVector("\xff\xd8\xff\xe0\0\2xy"s)), HasSubstr("no marker"));
  Bytes png = ReadAll(Pictures() / "plain.png");
  std::fill(png.begin() + 16, png.begin() + 20, 0xff);  // width
  EXPECT_THAT(ErrorOf(png), HasSubstr("4294967295"));
}

TEST(ImageHeaderTest, EveryTruncationIsCaughtByHeaderOrCompleteness) {
  for (const auto& entry : std::filesystem::directory_iterator(Pictures())) {
    const Bytes whole = ReadAll(entry.path());
    const ImageHeader header = ReadImageHeader(whole, {});
    EXPECT_NO_THROW(CheckComplete(whole, header)) << entry.path();
    for (size_t size = 0; size < whole.size(); ++size) {
      const Bytes cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
      EXPECT_THROW(CheckComplete(cut, ReadImageHeader(cut, {})), std::invalid_argument)
          << entry.path() << " at " << size;
    }
  }
}

TEST(ImageHeaderTest, SurvivesDamage) {
  std::mt19937 random(3);
  for (const auto& entry : std::filesystem::directory_iterator(Pictures())) {
    const Bytes whole = ReadAll(entry.path());
    for (int i = 0; i < 2000; ++i) {
      Bytes damaged = whole;
      for (int k = 0; k < 3; ++k) {
        const size_t range = k == 0 ? damaged.size() : std::min<size_t>(damaged.size(), 64);
        damaged[random() % range] = static_cast<uint8_t>(random());
      }
      try {
        const ImageHeader header = ReadImageHeader(damaged, {});
        ExifOrientation(damaged, header);
        CheckComplete(damaged, header);
      } catch (const std::invalid_argument&) {
      }
    }
  }
}

TEST(ImageHeaderTest, FindsTheExifOrientation) {
  const Bytes turned = ReadAll(Pictures() / "exif_rotated.jpg");
  EXPECT_GT(ExifOrientation(turned, ReadImageHeader(turned, {})), 1);
  const Bytes plain = ReadAll(Pictures() / "wide_300x41.jpg");
  EXPECT_EQ(ExifOrientation(plain, ReadImageHeader(plain, {})), 1);
}

}  // namespace
}  // namespace llava
