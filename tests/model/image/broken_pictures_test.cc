// Thousands of broken files, decoded in this process: each gives a picture or a reason, and memory
// stays within what the limits allow.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <stdexcept>

#include "model/image/container.h"
#include "model/image/decode.h"
#include "tests/support/broken_pictures.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

int64_t PeakBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// LLAVA_BROKEN_PICTURES: how many.
int Count() {
  const char* count = std::getenv("LLAVA_BROKEN_PICTURES");
  return count != nullptr ? std::atoi(count) : 10'000;
}

// The address sanitizer keeps so much of what was freed, to find who still uses it.
#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kFreedButHeld = 256 << 20;
#else
constexpr int64_t kFreedButHeld = 0;
#endif

TEST(BrokenPicturesTest, WholeOnesAreDecoded) {
  for (const PictureFile& file : WholePictures({})) {
    const Image image = DecodeImage(file.bytes);
    EXPECT_EQ(image.width, 50) << file.name;
    EXPECT_EQ(image.height, 37) << file.name;
  }
}

TEST(BrokenPicturesTest, EveryCutIsRefused) {
  for (const PictureFile& file : WholePictures({})) {
    for (size_t size = 0; size < file.bytes.size(); size += 1 + file.bytes.size() / 61) {
      const std::span<const uint8_t> cut(file.bytes.data(), size);
      EXPECT_THROW(DecodeImage(cut), std::invalid_argument) << file.name << " at " << size;
    }
  }
}

TEST(BrokenPicturesTest, GiveAPictureOrAReason) {
  const ImageLimits limits{.max_bytes = 1 << 20, .max_pixels = 1 << 20, .max_side = 8192};
  const auto whole = WholePictures(FixturesDir() / "images");
  for (const PictureFile& file : whole) DecodeImage(file.bytes, limits);
  const int64_t before = PeakBytes();
  std::mt19937 random(20);
  int decoded = 0, refused = 0;
  for (int i = 0; i < Count(); ++i) {
    const std::vector<uint8_t> file = Broken(whole, random);
    try {
      const Image image = DecodeImage(file, limits);
      ASSERT_LE(static_cast<uint64_t>(image.width) * image.height, limits.max_pixels);
      ASSERT_EQ(image.rgb.size(), static_cast<size_t>(image.width) * image.height * 3);
      ++decoded;
    } catch (const std::invalid_argument& error) {
      ASSERT_STRNE(error.what(), "");
      ++refused;
    }
  }
  EXPECT_GT(decoded, Count() / 20);
  EXPECT_GT(refused, Count() / 5);
  EXPECT_LT(PeakBytes() - before, (256 << 20) + kFreedButHeld);
}

TEST(BrokenPicturesTest, TextsAreNotUnpacked) {
  // 200 times 7 MB in 1.4 MB, of which each is below libpng's own limit.
  const std::vector<uint8_t> file = PngWithTexts(200, 7'000'000);
  ASSERT_LT(file.size(), 2'000'000u);
  const int64_t before = PeakBytes();
  const Image image = DecodeImage(file);
  EXPECT_EQ(image.rgb, (std::vector<uint8_t>{10, 20, 30}));
  EXPECT_LT(PeakBytes() - before, 100 << 20);
}

TEST(BrokenPicturesTest, OnlyFilesWithTextsAreCopied) {
  const auto without = [](const std::vector<uint8_t>& file) {
    return WithoutTexts(file, ReadImageHeader(file, {}));
  };
  EXPECT_EQ(without(PngWithTexts(3, 100)), PngWithTexts(0, 0));
  EXPECT_TRUE(without(PngWithTexts(0, 0)).empty());
}

TEST(BrokenPicturesTest, ScansWithoutEndAreRefused) {
  for (const PictureFile& file : WholePictures({})) {
    if (file.name != "baseline.jpg") continue;
    // The only scan, from its marker to the end of the picture, many times.
    const std::vector<uint8_t>& bytes = file.bytes;
    const uint8_t marker[] = {0xff, 0xda};
    const auto scan = std::search(bytes.begin(), bytes.end(), marker, marker + 2);
    ASSERT_NE(scan, bytes.end());
    std::vector<uint8_t> many(bytes.begin(), scan);
    for (int i = 0; i < 500; ++i) many.insert(many.end(), scan, bytes.end() - 2);
    many.insert(many.end(), bytes.end() - 2, bytes.end());
    EXPECT_THAT([&] { DecodeImage(many); },
                ThrowsMessage<std::invalid_argument>(HasSubstr("more than 100 scans")));
  }
}

}  // namespace
}  // namespace llava
