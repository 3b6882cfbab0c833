// The pictures in deploy/scenes and what scenes.json says of them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "model/image/container.h"
#include "model/image/header.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

const fs::path kScenes = SourceDir() + "/deploy/scenes";

// The words for a cell, as the model was taught them.
std::string Place(int column, int row) {
  const std::string side = column == 1 ? "left" : column == 4 ? "right" : "";
  const std::string end = row == 1 ? "top" : row == 4 ? "bottom" : "";
  if (side.empty() && end.empty()) return "in the center";
  if (end.empty()) return "on the " + side;
  return "at the " + end + (side.empty() ? "" : " " + side);
}

TEST(ScenesTest, EveryPictureIsDescribedAndOfTheModelsSize) {
  const json scenes = json::parse(ReadBytes(kScenes / "scenes.json"));
  const json config =
      json::parse(ReadBytes(SourceDir() + "/deploy/models/emoji-tower/1/config.json"));
  const uint32_t side = config["vision"]["image_size"];
  const std::string readme = ReadBytes(kScenes / "README.md");
  std::set<std::string> described;
  for (const json& scene : scenes) {
    const std::string name = scene["file"];
    described.insert(name);
    EXPECT_THAT(readme, HasSubstr("`" + name + "`"));
    const std::string bytes = ReadBytes(kScenes / name);
    const std::span file(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    const ImageHeader header = ReadImageHeader(file, {});
    EXPECT_EQ(header.format, ImageFormat::kPng) << name;
    EXPECT_EQ(header.width, side) << name;
    EXPECT_EQ(header.height, side) << name;
    EXPECT_NO_THROW(CheckComplete(file, header)) << name;
    EXPECT_GE(scene["objects"].size(), 1u);
    for (const json& object : scene["objects"]) {
      EXPECT_EQ(object["place"], Place(object["column"], object["row"])) << name;
    }
  }
  std::set<std::string> pictures;
  for (const auto& entry : fs::directory_iterator(kScenes)) {
    if (entry.path().extension() == ".png") pictures.insert(entry.path().filename().string());
  }
  EXPECT_EQ(described, pictures);
  EXPECT_EQ(described.size(), 8u);
}

}  // namespace
}  // namespace llava
