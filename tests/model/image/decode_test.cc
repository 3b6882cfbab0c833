#include "model/image/decode.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <opencv2/core.hpp>
#include <random>
#include <stdexcept>
#include <thread>

#include "model/checkpoint/tensor_file.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

using Bytes = std::vector<uint8_t>;
using testing::HasSubstr;

Bytes ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// What reaches file descriptor 2 of the process while `action` runs.
template <typename Action>
std::string StderrOf(Action action) {
  char name[] = "/tmp/llava_stderr_XXXXXX";
  const int file = mkstemp(name);
  const int saved = dup(STDERR_FILENO);
  dup2(file, STDERR_FILENO);
  action();
  std::fflush(stderr);
  dup2(saved, STDERR_FILENO);
  close(saved);
  close(file);
  const Bytes bytes = ReadAll(name);
  std::filesystem::remove(name);
  return {bytes.begin(), bytes.end()};
}

// rgb/NAME, rgb/NAME#exif_applied, rgb/NAME#on_white: PNG exactly, JPEG within one level.
TEST(DecodeTest, DecodesAsPillow) {
  const auto expected = TensorFile::Open(FixturesDir() / "expected/images.safetensors");
  int pictures = 0;
  for (const auto& [name, info] : expected->tensors()) {
    if (!name.starts_with("rgb/")) continue;
    ++pictures;
    const std::string full = name.substr(4), picture = full.substr(0, full.find('#'));
    const DecodeOptions options{.apply_exif = full.ends_with("#exif_applied"),
                                .alpha_on_white = full.ends_with("#on_white")};
    const Image image = DecodeImage(ReadAll(FixturesDir() / "images" / picture), {}, options);
    ASSERT_EQ(image.height, info.shape[0]) << full;
    ASSERT_EQ(image.width, info.shape[1]) << full;
    const int tolerance = picture.ends_with(".jpg") ? 1 : 0;
    const at::Tensor tensor = expected->Get(name);
    const auto* want = tensor.const_data_ptr<uint8_t>();
    int worst = 0;
    for (size_t i = 0; i < image.rgb.size(); ++i) {
      worst = std::max(worst, std::abs(image.rgb[i] - want[i]));
    }
    EXPECT_LE(worst, tolerance) << full;
  }
  EXPECT_GE(pictures, 10);
}

// A picture of 3 x 2 pixels with the values 0..5 in red, turned by each orientation.
TEST(DecodeTest, TurnsByEveryOrientation) {
  // Written by hand: IHDR 3 x 2 RGB, eXIf, IDAT of stored blocks; libpng checks every sum.
  const auto big = [](uint32_t value) {
    return std::string{static_cast<char>(value >> 24), static_cast<char>(value >> 16),
                       static_cast<char>(value >> 8), static_cast<char>(value)};
  };
  const auto chunk = [&](const std::string& type, const std::string& data) {
    uint32_t crc = 0xffffffff;
    for (const char c : type + data) {
      crc ^= static_cast<uint8_t>(c);
      for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return big(static_cast<uint32_t>(data.size())) + type + data + big(~crc);
  };
  std::string raw;
  for (int y = 0; y < 2; ++y) {
    raw += '\0';
    for (int x = 0; x < 3; ++x) raw += std::string{static_cast<char>(y * 3 + x), '\0', '\0'};
  }
  uint32_t a = 1, b = 0;
  for (const char c : raw) {
    a = (a + static_cast<uint8_t>(c)) % 65521;
    b = (b + a) % 65521;
  }
  const auto length = static_cast<char>(raw.size());
  const std::string zlib = std::string("\x78\x01\x01", 3) + length + '\0' +
                           static_cast<char>(~length) + '\xff' + raw + big(b << 16 | a);
  const std::vector<std::vector<int>> expected = {
      {0, 1, 2, 3, 4, 5}, {2, 1, 0, 5, 4, 3}, {5, 4, 3, 2, 1, 0}, {3, 4, 5, 0, 1, 2},
      {0, 3, 1, 4, 2, 5}, {3, 0, 4, 1, 5, 2}, {5, 2, 4, 1, 3, 0}, {2, 5, 1, 4, 0, 3}};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    std::string exif("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0", 26);
    exif[19] = static_cast<char>(orientation);
    const std::string png = std::string("\x89PNG\r\n\x1a\n") +
                            chunk("IHDR", big(3) + big(2) + std::string("\x08\x02\0\0\0", 5)) +
                            chunk("eXIf", exif) + chunk("IDAT", zlib) + chunk("IEND", "");
    const Image image = DecodeImage(Bytes(png.begin(), png.end()), {}, {.apply_exif = true});
    EXPECT_EQ(image.width, orientation < 5 ? 3 : 2);
    std::vector<int> red;
    for (size_t i = 0; i < image.rgb.size(); i += 3) red.push_back(image.rgb[i]);
    EXPECT_EQ(red, expected[orientation - 1]) << orientation;
  }
}

// Cut at many places: always refused, never anything on stderr, never another exception.
TEST(DecodeTest, RefusesCutFilesInSilence) {
  const std::string printed = StderrOf([] {
    for (const auto& entry : std::filesystem::directory_iterator(FixturesDir() / "images")) {
      const Bytes whole = ReadAll(entry.path());
      for (size_t size = 0; size < whole.size(); size += 1 + whole.size() / 97) {
        const Bytes cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
        EXPECT_THROW(DecodeImage(cut), std::invalid_argument) << entry.path() << " at " << size;
      }
    }
  });
  EXPECT_EQ(printed, "");
}

TEST(DecodeTest, SurvivesDamageInSilence) {
  int refused = 0;
  const std::string printed = StderrOf([&] {
    std::mt19937 random(4);
    for (const auto& entry : std::filesystem::directory_iterator(FixturesDir() / "images")) {
      const Bytes whole = ReadAll(entry.path());
      for (int i = 0; i < 100; ++i) {
        Bytes damaged = whole;
        damaged[random() % damaged.size()] ^= static_cast<uint8_t>(1u << random() % 8);
        try {
          const Image image = DecodeImage(damaged, {.max_pixels = 1'000'000});
          EXPECT_EQ(image.rgb.size(), static_cast<size_t>(image.width) * image.height * 3);
        } catch (const std::invalid_argument&) {
          ++refused;
        }
      }
    }
  });
  EXPECT_GT(refused, 100);
  EXPECT_EQ(printed, "");
}

TEST(DecodeTest, LeavesTheProcessItsStderr) {
  const std::string printed = StderrOf([] {
    EXPECT_THROW(DecodeImage(Bytes{1, 2, 3}), std::invalid_argument);
    DecodeImage(ReadAll(FixturesDir() / "images/plain.png"));
    std::fputs("still here", stderr);
  });
  EXPECT_EQ(printed, "still here");
}

// Refuses all memory while it is there.
class NoMemory : public cv::MatAllocator {
 public:
  NoMemory() { cv::Mat::setDefaultAllocator(this); }
  ~NoMemory() override { cv::Mat::setDefaultAllocator(cv::Mat::getStdAllocator()); }
  cv::UMatData* allocate(int, const int*, int, void*, size_t*, cv::AccessFlag,
                         cv::UMatUsageFlags) const override {
    throw cv::Exception(cv::Error::StsNoMem, "Failed to allocate", "allocate", "test", 0);
  }
  bool allocate(cv::UMatData*, cv::AccessFlag, cv::UMatUsageFlags) const override { return false; }
  void deallocate(cv::UMatData*) const override {}
};

TEST(DecodeTest, NoMemoryIsNoFaultOfTheFile) {
  const Bytes file = ReadAll(FixturesDir() / "images/plain.png");
  {
    const NoMemory none;
    EXPECT_THROW(DecodeImage(file), std::bad_alloc);
  }
  EXPECT_GT(DecodeImage(file).width, 0);
}

TEST(DecodeTest, ChecksTheHeaderBeforeDecoding) {
  const Bytes file = ReadAll(FixturesDir() / "images/plain.png");
  try {
    DecodeImage(file, {.max_pixels = 100});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), HasSubstr("at most 100 are allowed"));
  }
}

TEST(DecodeTest, IsThreadSafe) {
  const Bytes file = ReadAll(FixturesDir() / "images/rgba.png");
  const Image expected = DecodeImage(file);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) EXPECT_EQ(DecodeImage(file).rgb, expected.rgb);
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace llava
