// PngSuite and libpng's collection of malformed files (png_suite/README.md).

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "model/digest/sha256.h"
#include "model/image/decode.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

const std::filesystem::path kFolder = SourceDir() + "/tests/model/image/png_suite";

std::vector<uint8_t> Read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(PngSuiteTest, ValidFilesAreWhatPillowReads) {
  std::ifstream file(kFolder / "golden.json");
  const auto golden = nlohmann::json::parse(file);
  ASSERT_GE(golden["files"].size(), 160u);
  for (const auto& one : golden["files"]) {
    const std::string name = one["file"];
    const Image image = DecodeImage(Read(kFolder / "valid" / name));
    EXPECT_EQ((nlohmann::json{image.width, image.height}), one["size"]) << name;
    const std::string_view rgb(reinterpret_cast<const char*>(image.rgb.data()), image.rgb.size());
    EXPECT_EQ(ToHex(HashBytes(rgb)), one["sha256"].get<std::string>()) << name;
  }
}

TEST(PngSuiteTest, BrokenFilesAreRefusedWithAReason) {
  // What is broken in it is not the picture: notes without content.
  const std::string harmless = "empty_ancillary_chunks.png";
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder / "broken")) {
    const std::string name = entry.path().filename();
    ++files;
    try {
      DecodeImage(Read(entry.path()));
      EXPECT_EQ(name, harmless) << "is decoded";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(name, harmless) << error.what();
      EXPECT_STRNE(error.what(), "") << name;
    }
  }
  EXPECT_GE(files, 38);
}

}  // namespace
}  // namespace llava
