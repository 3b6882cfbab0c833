#include "model/eval/text_map.h"

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

class TextMapTest : public testing::Test {
 protected:
  static constexpr int64_t kWidth = 36;

  static DecoderConfig Config() {
    DecoderConfig config = TinyDecoderConfig();
    config.vocab_size = 1000;
    return config;
  }
  at::Tensor WordOf(const std::string& piece) const {
    return decoder_.Embed(at::tensor({int64_t{tokenizer_.IdOf(piece)}}, at::kLong))[0];
  }

  const Tokenizer tokenizer_ = Tokenizer::Load(SourceDir() + "/deploy/models/emoji/1");
  const LlamaDecoder decoder_{Config(), MemoryTensors(RandomDecoder(Config())), at::kCPU,
                              at::kFloat};
};

TEST_F(TextMapTest, CellsSayWhatStandsThere) {
  Scene scene;
  scene.background = 2;
  SceneObject lion;
  lion.size = 44;
  lion.big = true;
  lion.x = lion.y = 40;
  lion.column = lion.row = 2;
  scene.objects = {lion};
  const TextMap map(tokenizer_, kWidth, 5, /*deviation=*/0.1);
  const at::Tensor embedded = map.Embed(decoder_, {&scene, 1});
  ASSERT_EQ(embedded.sizes(), (at::IntArrayRef{1, 36, kWidth}));
  const at::Tensor rows = map.parameters()[0].second, columns = map.parameters()[1].second;
  EXPECT_NEAR(rows.std().item<double>(), 0.1, 0.02);
  const auto cell = [&](int64_t row, int64_t column) {
    return embedded[0][row * 6 + column] - rows[row] - columns[column];
  };
  const std::string space = "\u2581";
  EXPECT_LT(MaxDifference(cell(2, 2), WordOf(space + "lion") + 0.7 * WordOf(space + "big")), 1e-5);
  EXPECT_LT(MaxDifference(cell(2, 3), WordOf("<part>")), 1e-5);
  EXPECT_LT(MaxDifference(cell(5, 0), WordOf(space + "blue")), 1e-5);
}

TEST_F(TextMapTest, ScenesDoNotMix) {
  const TextMap map(tokenizer_, kWidth, 5, 0.1);
  const std::vector<Scene> scenes = {SampleScene({}, 3, 0), SampleScene({}, 3, 1)};
  const at::Tensor both = map.Embed(decoder_, scenes);
  EXPECT_LT(MaxDifference(both[1], map.Embed(decoder_, {&scenes[1], 1})[0]), 1e-6);
  EXPECT_GT(MaxDifference(both[0], both[1]), 0.1);
}

TEST_F(TextMapTest, GradientsReachPlaces) {
  const TextMap map(tokenizer_, kWidth, 5, 0.1);
  const Scene scene = SampleScene({}, 3, 0);
  map.Embed(decoder_, {&scene, 1}).sum().backward();
  for (const auto& [name, vectors] : map.parameters()) {
    EXPECT_TRUE(at::equal(vectors.grad(), at::full({6, kWidth}, 6.0))) << name;
  }
}

TEST_F(TextMapTest, IsReadAsItWasWritten) {
  const TempFolder folder;
  const std::filesystem::path file = folder.path() / "map.safetensors";
  const TextMap map(tokenizer_, kWidth, 5, 0.1);
  map.Save(file);
  const TextMap read(tokenizer_, file);
  const Scene scene = SampleScene({}, 3, 0);
  EXPECT_TRUE(at::equal(read.Embed(decoder_, {&scene, 1}), map.Embed(decoder_, {&scene, 1})));

  SaveSafetensors(file, {{"rows", at::zeros({5, kWidth})}, {"columns", at::zeros({6, kWidth})}});
  try {
    TextMap(tokenizer_, file);
    FAIL() << "five rows were taken";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("map.safetensors"));
    EXPECT_THAT(error.what(), testing::HasSubstr("\"rows\""));
  }
}

TEST_F(TextMapTest, NamesWordsThatAreNoPieces) {
  try {
    TextMap(tokenizer_, kWidth, 5, 0.1, kLargeCategorySet);
    FAIL() << "the tokenizer knows 48 categories only";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr('"' + Categories()[60].name + '"'));
    EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\"lion\"")));
  }
  // Where no scene has them, they don't matter; else they are told.
  SceneOptions options;
  options.num_categories = kLargeCategorySet;
  Scene scene = SampleScene(options, 3, 0);
  scene.objects[0].category = 60;
  const TextMap map(tokenizer_, kWidth, 5, 0.1);
  EXPECT_THROW(map.Embed(decoder_, {&scene, 1}), std::invalid_argument);
}

}  // namespace
}  // namespace llava
