#include "model/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/json_object.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Manifest Example() {
  Manifest manifest;
  manifest.name = "m";
  manifest.version = 7;
  manifest.files["a"] = {5, HashBytes("hello")};
  manifest.files["b"] = {0, HashBytes("")};
  manifest.tower_digest = HashBytes("tower");
  manifest.projector_digest = HashBytes("projector");
  manifest.decoder_digest = HashBytes("decoder");
  manifest.tokenizer_digest = HashBytes("tokenizer");
  manifest.parent_version = 6;
  manifest.recipe = R"({"steps":3})";
  return manifest;
}

TEST(ManifestTest, ReadsWhatItWrote) {
  const TempFolder folder;
  const Manifest written = Example();
  WriteBytes(folder.path() / "manifest.json", written.ToJson());
  const Manifest read = Manifest::Read(folder.path());
  EXPECT_EQ(read.ToJson(), written.ToJson());
  EXPECT_EQ(read.digest, HashBytes(written.ToJson()));
  EXPECT_EQ(read.version, 7u);
  EXPECT_EQ(read.files.at("a").sha256, HashBytes("hello"));
  EXPECT_EQ(read.parent_version, 6u);
  EXPECT_EQ(read.recipe, R"({"steps":3})");

  Manifest tower;
  tower.kind = Manifest::Kind::kTower;
  tower.name = "t";
  tower.version = 1;
  WriteBytes(folder.path() / "manifest.json", tower.ToJson());
  EXPECT_EQ(Manifest::Read(folder.path()).kind, Manifest::Kind::kTower);
  EXPECT_FALSE(Manifest::Read(folder.path()).projector_digest.has_value());
}

// What others wrote must neither hide the file's name nor exhaust the stack.
TEST(JsonObjectTest, NamesTheFileWhateverIsWrong) {
  const TempFolder folder;
  const auto path = folder.path() / "manifest.json";
  const std::string deep =
      R"({"files": )" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  for (const std::string& text :
       {std::string("{\"a\": 1e999}"), deep, std::string("{"), std::string("[]"), std::string()}) {
    WriteBytes(path, text);
    const std::string begin = path.string() + ": is not a JSON object";
    EXPECT_THAT(ErrorOf([&] { JsonObject::Read(path); }), testing::StartsWith(begin));
    EXPECT_THAT(ErrorOf([&] { Manifest::Read(folder.path()); }), testing::StartsWith(begin));
  }
}

TEST(ManifestTest, NamesFileAndKeyOfWhatIsWrong) {
  const TempFolder folder;
  const std::pair<const char*, nlohmann::json> changes[] = {
      {"format_version", 2}, {"format_version", "1"}, {"kind", "house"},    {"name", 3},
      {"version", 0},        {"version", -1},         {"version", nullptr}, {"tower_digest", "ab"},
      {"decoder_digest", 5}, {"files", "none"},       {"parent_version", 0}};
  for (const auto& [key, value] : changes) {
    WriteBytes(folder.path() / "manifest.json", Example().ToJson());
    EditJson(folder.path() / "manifest.json",
             [&, &key = key, &value = value](auto& json) { json[key] = value; });
    EXPECT_THAT(ErrorOf([&] { Manifest::Read(folder.path()); }),
                AllOf(HasSubstr("manifest.json"), HasSubstr(key)));
  }
  for (const char* name : {"../x", "a/b", "..", "", "manifest.json"}) {
    WriteBytes(folder.path() / "manifest.json", Example().ToJson());
    EditJson(folder.path() / "manifest.json",
             [&](auto& json) { json["files"][name] = json["files"]["a"]; });
    EXPECT_THAT(ErrorOf([&] { Manifest::Read(folder.path()); }), HasSubstr("not a file of"));
  }
  WriteBytes(folder.path() / "manifest.json", "{");
  EXPECT_THAT(ErrorOf([&] { Manifest::Read(folder.path()); }), HasSubstr("not a JSON object"));
}

}  // namespace
}  // namespace llava
