// Every checkpoint layout of the folder holds the same model.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/parity/fixture_folder.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

// The same names; each tensor equal, after rounding `expected` as `rounding` says. Rows that pad a
// vocabulary beyond the other's are left out.
void ExpectSameTensors(const TensorSource& found, const TensorSource& expected,
                       at::ScalarType rounding = at::kFloat) {
  ASSERT_FALSE(expected.tensors().empty());
  for (const auto& [name, info] : expected.tensors()) {
    ASSERT_TRUE(found.tensors().contains(name)) << name;
    at::Tensor x = found.Get(name), y = expected.Get(name);
    if (name == "model.embed_tokens.weight" || name == "lm_head.weight") {
      const int64_t rows = std::min(x.size(0), y.size(0));
      x = x.narrow(0, 0, rows);
      y = y.narrow(0, 0, rows);
    }
    EXPECT_TRUE(at::equal(x.to(at::kFloat), y.to(rounding).to(at::kFloat))) << name;
  }
  EXPECT_EQ(found.tensors().size(), expected.tensors().size());
}

void ExpectSameLanguage(const fs::path& folder, at::ScalarType rounding = at::kFloat) {
  SCOPED_TRACE(folder.string());
  const LanguageCheckpoint expected = Folder().OpenLanguage("orig-f32");
  const LanguageCheckpoint found = OpenLanguage(folder);
  ExpectSameTensors(found.tensors, expected.tensors, rounding);
  const DecoderConfig &x = found.config.decoder, &y = expected.config.decoder;
  EXPECT_EQ(x.hidden_size, y.hidden_size);
  EXPECT_EQ(x.num_layers, y.num_layers);
  EXPECT_EQ(x.num_heads, y.num_heads);
  EXPECT_EQ(x.num_kv_heads, y.num_kv_heads);
  EXPECT_EQ(x.head_dim, y.head_dim);
  EXPECT_EQ(x.rope_theta, y.rope_theta);
  EXPECT_EQ(x.rms_norm_eps, y.rms_norm_eps);
  EXPECT_EQ(found.config.projector.depth, expected.config.projector.depth);
  EXPECT_EQ(found.config.features.select_layer, expected.config.features.select_layer);
  EXPECT_EQ(found.config.features.select_feature, expected.config.features.select_feature);
  EXPECT_EQ(found.tower_patches, expected.tower_patches);
}

void ExpectSameTower(const fs::path& folder, at::ScalarType rounding = at::kFloat) {
  SCOPED_TRACE(folder.string());
  const TowerCheckpoint expected = OpenTower(Folder().root() / "clip-tower");
  const TowerCheckpoint found = OpenTower(folder);
  ExpectSameTensors(found.tensors, expected.tensors, rounding);
  EXPECT_EQ(found.config.num_layers, expected.config.num_layers);
  EXPECT_EQ(found.config.num_heads, expected.config.num_heads);
  EXPECT_EQ(found.config.activation, expected.config.activation);
  EXPECT_EQ(found.config.preprocess.image_size, expected.config.preprocess.image_size);
  EXPECT_EQ(found.digest == expected.digest, rounding == at::kFloat);
}

TEST(CheckpointParityTest, LlavaHf) {
  ExpectSameLanguage(Folder().root() / "tiny-llava");
  ExpectSameTower(Folder().root() / "tiny-llava");
  // Its tables are padded: head rows beyond the vocabulary are 0.
  const int64_t vocabulary = Folder().Json("tokenization").at("vocab");
  const at::Tensor head = Folder().OpenLanguage("tiny-llava").tensors.Get("lm_head.weight");
  ASSERT_GT(head.size(0), vocabulary);
  EXPECT_EQ(head.narrow(0, vocabulary, head.size(0) - vocabulary).abs().max().item<float>(), 0);
}

TEST(CheckpointParityTest, OriginalPicklesWithTheTowerBeside) {
  ExpectSameLanguage(Folder().root() / "orig-f32");
  EXPECT_EQ(Folder().OpenLanguage("orig-f32").tower_digest,
            OpenTower(Folder().root() / "clip-tower").digest);
}

TEST(CheckpointParityTest, OriginalBFloat16WithTheTowerInside) {
  ExpectSameLanguage(Folder().root() / "orig-bf16", at::kBFloat16);
  ExpectSameTower(Folder().root() / "orig-bf16", at::kBFloat16);
}

TEST(CheckpointParityTest, StageOneProjectors) {
  LanguageCheckpoint mlp = Folder().OpenLanguage("orig-f32");
  OverlayProjector(mlp, Folder().root() / "stage1-mlp");
  ExpectSameTensors(mlp.tensors, Folder().OpenLanguage("orig-f32").tensors);
  LanguageCheckpoint linear = Folder().OpenLanguage("orig-f32");
  OverlayProjector(linear, Folder().root() / "stage1-linear" / "mm_projector.bin");
  EXPECT_EQ(linear.config.projector.type(), "linear");
  EXPECT_TRUE(linear.tensors.tensors().contains("model.mm_projector.weight"));
  EXPECT_FALSE(linear.tensors.tensors().contains("model.mm_projector.0.weight"));
}

// Newer versions of transformers save llava-hf under other names.
class RenamedTest : public testing::TestWithParam<bool> {
 protected:
  const TempFolder temp_;
  const fs::path& folder_ = temp_.path();
};

std::string Renamed(const std::string& name, bool flat_tower) {
  const std::map<std::string, std::string> prefixes = {
      {"language_model.model.", "model.language_model."},
      {"language_model.lm_head.", "lm_head."},
      {"vision_tower.vision_model.",
       flat_tower ? "model.vision_tower." : "model.vision_tower.vision_model."},
      {"multi_modal_projector.", "model.multi_modal_projector."}};
  for (const auto& [from, to] : prefixes) {
    if (name.starts_with(from)) return to + name.substr(from.size());
  }
  ADD_FAILURE() << name << " is in none of the places of the older llava-hf layout";
  return name;
}

TEST_P(RenamedTest, LlavaHfUnderNewerNames) {
  const fs::path source = Folder().root() / "tiny-llava";
  for (const auto& entry : fs::directory_iterator(source)) {
    if (entry.path().extension() != ".safetensors") fs::copy(entry.path(), folder_);
  }
  const auto file = OpenTensorFolder(source);
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, info] : file->tensors()) {
    tensors[Renamed(name, GetParam())] = file->Get(name);
  }
  ASSERT_EQ(tensors.size(), file->tensors().size());
  SaveSafetensors(folder_ / "model.safetensors", tensors);
  ExpectSameLanguage(folder_);
  ExpectSameTower(folder_);
}

INSTANTIATE_TEST_SUITE_P(FlatTower, RenamedTest, testing::Bool());

}  // namespace
}  // namespace llava
