#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <thread>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/memory_tensors.h"
#include "model/checkpoint/verified_files.h"
#include "model/checkpoint/version_folder.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

void ExpectSameTensors(const TensorSource& a, const TensorSource& b) {
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const auto& [name, info] : a.tensors()) {
    EXPECT_EQ(b.tensors().at(name).dtype, info.dtype) << name;
    EXPECT_TRUE(at::equal(a.Get(name), b.Get(name))) << name;
  }
}

TEST(PublishTest, ReadingBackIsExact) {
  const TempFolder folder;
  for (const char* fixture : {"tiny-llava", "orig-bf16"}) {
    const LanguageCheckpoint language = OpenLanguage(FixturesDir() / fixture);
    const TowerCheckpoint tower = OpenTower(FixturesDir() / fixture);
    const auto language_path =
        PublishLanguage(language, folder.path(), fixture, R"({"note": "test"})");
    const auto tower_path = PublishTower(tower, folder.path(), std::string(fixture) + "-tower");
    EXPECT_EQ(language_path, folder.path() / fixture / "1");

    const LanguageCheckpoint read = OpenLanguage(language_path);
    ExpectSameTensors(language.tensors, read.tensors);
    EXPECT_EQ(ToJson(read.config, read.tower_patches),
              ToJson(language.config, language.tower_patches));
    EXPECT_EQ(read.tokenizer->digest(), language.tokenizer->digest());
    EXPECT_EQ(read.tokenizer->options().image_inline, language.tokenizer->options().image_inline);
    EXPECT_EQ(read.chat_template->ToJson(), language.chat_template->ToJson());
    EXPECT_EQ(read.tower_digest, tower.digest);
    EXPECT_EQ(read.name, fixture);
    EXPECT_EQ(read.digest, HashFile((language_path / "manifest.json").string()));

    const TowerCheckpoint read_tower = OpenTower(tower_path);
    ExpectSameTensors(tower.tensors, read_tower.tensors);
    EXPECT_EQ(read_tower.digest, tower.digest);
    EXPECT_EQ(ToJson(read_tower.config), ToJson(tower.config));

    EXPECT_THAT(ErrorOf([&] { OpenTower(language_path); }), HasSubstr(ToHex(tower.digest)));
    EXPECT_THAT(ErrorOf([&] { OpenLanguage(tower_path); }), HasSubstr("vision tower"));
  }
}

// What lays out a picture's tiles belongs to the projector, not to the decoder.
TEST(PublishTest, TilesComeBack) {
  const TempFolder folder;
  const LanguageCheckpoint tiles = OpenLanguage(WriteTinyNext(folder.path() / "next"));
  const LanguageCheckpoint plain = OpenLanguage(FixturesDir() / "tiny-llava");
  const auto root = folder.path() / "repository";
  const LanguageCheckpoint read = OpenLanguage(PublishLanguage(tiles, root, "next"));
  ExpectSameTensors(tiles.tensors, read.tensors);
  EXPECT_EQ(ToJson(read.config, read.tower_patches), ToJson(tiles.config, tiles.tower_patches));
  EXPECT_EQ(read.config.features.grid, tiles.config.features.grid);
  const Manifest manifest = Manifest::Read(root / "next/1");
  const Manifest before = Manifest::Read(PublishLanguage(plain, root, "plain"));
  EXPECT_EQ(manifest.decoder_digest, before.decoder_digest);
  EXPECT_NE(manifest.projector_digest, before.projector_digest);
  EXPECT_EQ(manifest.tower_digest, before.tower_digest);
}

// In the order in which they are loaded, so that loading begins before all is read.
TEST(PublishTest, LargeModelsComeInShards) {
  const TempFolder folder;
  LanguageCheckpoint language = OpenLanguage(FixturesDir() / "tiny-llava");
  DecoderConfig& decoder = language.config.decoder;
  decoder.vocab_size = (int64_t{10} << 20) / 4 / decoder.hidden_size;  // tables of 10 MB
  ReplaceTensors(
      language.tensors,
      {{"model.embed_tokens.weight", at::ones({decoder.vocab_size, decoder.hidden_size})},
       {"lm_head.weight", at::zeros({decoder.vocab_size, decoder.hidden_size})}});
  const fs::path path = PublishLanguage(language, folder.path(), "m");
  const auto names = Manifest::Read(path).files;
  EXPECT_TRUE(names.contains("model-00001.safetensors"));
  EXPECT_TRUE(names.contains("model-00002.safetensors"));
  EXPECT_FALSE(names.contains("model-00003.safetensors"));
  const auto first = TensorFile::Open(path / "model-00001.safetensors");
  EXPECT_TRUE(first->tensors().contains("model.embed_tokens.weight"));
  EXPECT_TRUE(first->tensors().contains("model.layers.1.mlp.up_proj.weight"));
  ExpectSameTensors(language.tensors, OpenLanguage(path).tensors);
}

TEST(PublishTest, TakesRecipesThatAManifestCanHold) {
  const TempFolder folder;
  const LanguageCheckpoint language = OpenLanguage(FixturesDir() / "tiny-llava");
  int published = 0, refused = 0;
  for (size_t depth = 197; depth < 204; ++depth) {
    const std::string recipe = std::string(depth, '[') + std::string(depth, ']');
    try {
      const fs::path path = PublishLanguage(language, folder.path(), "m", recipe);
      EXPECT_EQ(Manifest::Read(path).recipe, recipe);
      ++published;
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(), HasSubstr("more than 200 levels"));
      ++refused;
    }
  }
  EXPECT_GT(published, 0);
  EXPECT_GT(refused, 0);
  EXPECT_THAT(ErrorOf([&] { PublishLanguage(language, folder.path(), "n", "1}, {"); }),
              HasSubstr("the recipe is not JSON"));
  EXPECT_FALSE(fs::exists(folder.path() / "n"));
}

TEST(PublishTest, CountsVersionsAndRemembersParents) {
  const TempFolder folder;
  const LanguageCheckpoint foreign = OpenLanguage(FixturesDir() / "tiny-llava");
  PublishLanguage(foreign, folder.path(), "m");
  const LanguageCheckpoint first = OpenLanguage(folder.path() / "m");
  EXPECT_EQ(first.version, 1u);
  PublishLanguage(first, folder.path(), "m");
  PublishLanguage(first, folder.path(), "m");
  PublishLanguage(first, folder.path(), "other");
  EXPECT_FALSE(Manifest::Read(folder.path() / "m/1").parent_version.has_value());
  EXPECT_EQ(Manifest::Read(folder.path() / "m/3").parent_version, 1u);
  EXPECT_FALSE(Manifest::Read(folder.path() / "other/1").parent_version.has_value());
  EXPECT_EQ(OpenLanguage(folder.path() / "m").version, 3u);
  EXPECT_EQ(NewestVersion(folder.path() / "m"), 3u);
}

// Versions compare as numbers; half-written and foreign folders are not seen.
TEST(PublishTest, FindsTheNewestWholeVersion) {
  const TempFolder folder;
  EXPECT_EQ(NewestVersion(folder.path()), std::nullopt);
  for (const char* name :
       {"9", "10", "007", "0", "-3", "x", ".tmp-1", "11", "99999999999999999999"}) {
    fs::create_directories(folder.path() / name);
    if (std::string(name) != "11") WriteBytes(folder.path() / name / "manifest.json", "{}");
  }
  EXPECT_EQ(NewestVersion(folder.path()), 10u);
}

TEST(PublishTest, LeavesNothingBehindWhenItFails) {
  const TempFolder folder;
  const TowerCheckpoint tower = OpenTower(FixturesDir() / "clip-tower");
  for (const char* name : {"", ".", "..", "a/b", ".hidden", "-x", "a b"}) {
    EXPECT_THROW(PublishTower(tower, folder.path(), name), std::invalid_argument) << name;
  }
  const LanguageCheckpoint language = OpenLanguage(FixturesDir() / "orig-f32");
  EXPECT_THROW(PublishLanguage(language, folder.path(), "m", "no json"), std::invalid_argument);
  EXPECT_TRUE(fs::is_empty(folder.path()));
  WriteBytes(folder.path() / "blocked", "a file where the model's folder should be");
  EXPECT_ANY_THROW(PublishTower(tower, folder.path(), "blocked"));

  PublishTower(tower, folder.path(), "t");
  for (const auto& entry : fs::directory_iterator(folder.path() / "t")) {
    EXPECT_EQ(entry.path().filename(), "1");
  }
}

// Several writers at once: each gets a version of its own, and every version is whole.
TEST(PublishTest, WritersDoNotMeet) {
  const TempFolder folder;
  const TowerCheckpoint tower = OpenTower(FixturesDir() / "clip-tower");
  constexpr int kThreads = 4, kEach = 3;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kEach; ++i) PublishTower(tower, folder.path(), "t");
    });
  }
  for (auto& thread : threads) thread.join();
  std::set<uint64_t> versions;
  for (const auto& entry : fs::directory_iterator(folder.path() / "t")) {
    const Manifest manifest = Manifest::Read(entry.path());
    EXPECT_EQ(std::to_string(manifest.version), entry.path().filename().string());
    EXPECT_NO_THROW(VerifyFiles(entry.path(), manifest, {}));
    versions.insert(manifest.version);
  }
  EXPECT_EQ(versions.size(), kThreads * kEach);
  EXPECT_EQ(*versions.rbegin(), kThreads * kEach);
}

TEST(PublishTest, DamageIsFound) {
  const TempFolder folder;
  const auto path = PublishLanguage(OpenLanguage(FixturesDir() / "tiny-llava"), folder.path(), "m");
  for (const char* name : {"model.safetensors", "config.json", "tokenizer.model",
                           "tokenizer_config.json", "chat_template.json"}) {
    const std::string bytes = ReadBytes(path / name);
    std::string damaged = bytes;
    damaged[damaged.size() / 2] ^= 1;
    WriteBytes(path / name, damaged);
    EXPECT_THAT(ErrorOf([&] { OpenLanguage(path); }), HasSubstr(name));
    WriteBytes(path / name, bytes);
  }
  EXPECT_EQ(ErrorOf([&] { OpenLanguage(path); }), "");
  EditJson(path / "manifest.json", [](auto& json) { json["files"].erase("config.json"); });
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(path); }), HasSubstr("does not list config.json"));
}

// A tokenizer or template file swapped for another valid one, manifest and all.
TEST(PublishTest, TokenizerHasToBeTheOneNamed) {
  const TempFolder folder;
  const auto path = PublishLanguage(OpenLanguage(FixturesDir() / "tiny-llava"), folder.path(), "m");
  EditJson(path / "tokenizer_config.json", [](auto& json) { json["legacy"] = !json["legacy"]; });
  EXPECT_THAT(ErrorOf([&] {
                OpenLanguage(path, {"", "", /*verify=*/false});
              }),
              HasSubstr("tokenizer is not the one"));
}

TEST(DefaultModelTest, IsWholeAndFits) {
  const fs::path models = SourceDir() + "/deploy/models";
  const LanguageCheckpoint language = OpenLanguage(models / "emoji");
  const TowerCheckpoint tower = OpenTower(models / "emoji-tower");
  EXPECT_EQ(language.tower_digest, tower.digest);
  EXPECT_EQ(language.chat_template->name(), "emoji");
  EXPECT_EQ(language.tower_patches, tower.config.num_patches());
  EXPECT_TRUE(language.config.decoder.tie_word_embeddings);
  EXPECT_EQ(language.tensors.tensors().begin()->second.dtype, at::kBFloat16);
}

}  // namespace
}  // namespace llava
