// meta.json and README.md: the folder is the one its description speaks of, and nothing that it
// lists goes unchecked.

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

using nlohmann::json;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

json Meta() {
  std::ifstream file(Folder().root() / "meta.json");
  return json::parse(file);
}

TEST(MetaParityTest, ConfigurationsAreReadAsTheModelWasMade) {
  const json meta = Meta(), &shape = meta.at("shape");
  const VisionConfig& tower = Folder().Tower("clip-tower").config();
  EXPECT_EQ(tower.image_size, shape.at("image"));
  EXPECT_EQ(tower.preprocess.image_size, shape.at("image"));
  EXPECT_EQ(tower.patch_size, shape.at("patch"));
  EXPECT_EQ(tower.hidden_size, shape.at("v_hidden"));
  EXPECT_EQ(tower.num_heads, shape.at("v_heads"));
  EXPECT_EQ(tower.intermediate_size, shape.at("v_inter"));
  EXPECT_EQ(tower.num_layers, shape.at("v_layers"));
  EXPECT_EQ(tower.num_patches(), shape.at("n_patch"));
  for (const std::string folder : {"orig-f32", "orig-bf16", "tiny-llava"}) {
    const Llava& model = Folder().Language(folder);
    const DecoderConfig& decoder = model.config().decoder;
    EXPECT_EQ(decoder.hidden_size, shape.at("hidden")) << folder;
    EXPECT_EQ(decoder.num_heads, shape.at("heads")) << folder;
    EXPECT_EQ(decoder.num_kv_heads, shape.at("kv")) << folder;
    EXPECT_EQ(decoder.intermediate_size, shape.at("inter")) << folder;
    EXPECT_EQ(decoder.num_layers, shape.at("layers")) << folder;
    EXPECT_EQ(decoder.vocab_size, shape.at(folder == "tiny-llava" ? "vocab_padded" : "vocab"));
    EXPECT_EQ(decoder.rms_norm_eps, shape.at("rms_eps")) << folder;
    EXPECT_EQ(decoder.rope_theta, shape.at("theta")) << folder;
    EXPECT_EQ(decoder.head_dim * decoder.num_heads, decoder.hidden_size) << folder;
    EXPECT_EQ(model.num_image_tokens(), shape.at("n_patch")) << folder;
    EXPECT_EQ(model.config().projector.in_width, shape.at("v_hidden")) << folder;
  }
  EXPECT_EQ(Folder().PlainTokenizer(true).vocab_size(), shape.at("vocab"));
}

TEST(MetaParityTest, SmallestMarginIsTheOneOfGeneration) {
  double smallest = INFINITY;
  for (const json& row : Folder().Json("generation")) {
    smallest = std::min(smallest, row.at("min_top2_margin").get<double>());
  }
  // Both are printed by the generator; the one of meta.json was taken before rounding of the head.
  EXPECT_NEAR(Meta().at("smallest_top2_margin").get<double>(), smallest, 1e-3);
}

TEST(MetaParityTest, LogitSpread) {
  const double spread = Folder().Expected("forward", "orig/logits").std().item<double>();
  EXPECT_NEAR(Meta().at("check").at("logit std").get<double>(), spread, 1e-4);
}

// The README's tables: | name | [shape] | dtype | under a heading that names the file.
TEST(MetaParityTest, EveryListedTensorIsThere) {
  const std::map<std::string, at::ScalarType> dtypes = {
      {"F32", at::kFloat}, {"I64", at::kLong}, {"U8", at::kByte}};
  std::ifstream readme(Folder().root() / "README.md");
  const std::regex heading("### (\\w+)\\.safetensors"),
      entry("\\| (\\S+) \\| \\[([^\\]]*)\\] \\| (\\w+) \\|");
  std::string line, file;
  std::map<std::string, std::set<std::string>> listed;
  while (std::getline(readme, line)) {
    std::smatch match;
    if (std::regex_match(line, match, heading)) {
      file = match[1];
    } else if (std::regex_match(line, match, entry)) {
      const std::string name = match[1];
      const auto& tensors = Folder().Tensors(file).tensors();
      ASSERT_TRUE(tensors.contains(name)) << file << " lacks " << name;
      std::vector<int64_t> shape;
      std::istringstream sizes(match[2]);
      for (std::string size; std::getline(sizes, size, ',');) shape.push_back(std::stoll(size));
      EXPECT_EQ(tensors.at(name).shape, shape) << name;
      EXPECT_EQ(tensors.at(name).dtype, dtypes.at(match[3])) << name;
      listed[file].insert(name);
    }
  }
  EXPECT_FALSE(listed.empty());
  for (const auto& [name, tensors] : listed) {
    EXPECT_EQ(tensors.size(), Folder().Tensors(name).tensors().size())
        << name << ".safetensors has tensors that README.md does not list";
  }
}

}  // namespace
}  // namespace llava
