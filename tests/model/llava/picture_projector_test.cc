#include "model/llava/picture_projector.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/llava/generate.h"
#include "model/llava/self_test.h"
#include "model/llava/serving_model.h"
#include "tests/model/llava/prompts.h"
#include "tests/model/llava/tiny_llava.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/support/error_of.h"

namespace llava {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Row by row, patch by patch: what LayOutTiles does at once.
std::vector<float> OneByOne(const PatchMap& map) {
  const int64_t side = map.tile_side;
  std::vector<float> rows;
  for (int64_t i = 0; i < side * side; ++i) rows.push_back(static_cast<float>(i));
  for (int64_t y = map.top; y < map.top + map.height; ++y) {
    for (int64_t x = map.left; x < map.left + map.width; ++x) {
      const int64_t tile = 1 + y / side * map.tile_columns + x / side;
      rows.push_back(static_cast<float>((tile * side + y % side) * side + x % side));
    }
    rows.push_back(-1);
  }
  return rows;
}

TEST(LayOutTilesTest, PutsEveryPatchInItsPlace) {
  for (const auto& [columns, rows] :
       {std::pair(1, 1), std::pair(2, 1), std::pair(1, 3), std::pair(3, 2)}) {
    for (const int64_t cut : {0, 1, 2}) {
      PatchMap map{.tile_columns = columns, .tile_rows = rows, .tile_side = 3};
      map.left = map.top = cut;
      map.width = std::max<int64_t>(0, 3 * columns - 2 * cut);
      map.height = std::max<int64_t>(0, 3 * rows - 2 * cut);
      const at::Tensor numbers = at::arange(9 * (1 + map.num_tiles()), at::kFloat).view({-1, 1});
      const at::Tensor found = LayOutTiles(numbers, map, at::full({1}, -1.0));
      EXPECT_TRUE(at::equal(found.flatten(), at::tensor(OneByOne(map))))
          << columns << " x " << rows << " tiles, cut " << cut;
    }
  }
}

// The tiny model with tiles of 6 pixels and 3 x 3 patches.
LanguageCheckpoint TinyTiles() {
  LanguageCheckpoint checkpoint = TinyLanguageCheckpoint();
  checkpoint.config.features.image_mode = ImageMode::kAnyres;
  checkpoint.config.features.grid = {{12, 6}, {6, 12}};
  checkpoint.config.features.tile_size = 6;
  checkpoint.config.decoder.head_dim = 16;  // the least that is served
  auto tensors = RandomDecoder(checkpoint.config.decoder);
  tensors.merge(RandomProjector(checkpoint.config.projector));
  tensors["model.image_newline"] = at::linspace(-1, 1, 36);
  checkpoint.tensors = MemoryTensors(std::move(tensors));
  return checkpoint;
}

at::Tensor ThreeTiles(uint64_t seed) {
  return at::cat({TinyFeatures(seed), TinyFeatures(seed + 1), TinyFeatures(seed + 2)});
}

constexpr Resolution kWide = {60, 30}, kHigh = {20, 40}, kLow = {60, 10};

TEST(PictureProjectorTest, LaysOutProjectedRows) {
  const LanguageCheckpoint checkpoint = TinyTiles();
  const PictureProjector pictures(checkpoint, at::kCPU, at::kFloat);
  const std::vector<at::Tensor> features = {ThreeTiles(1), ThreeTiles(5)};
  const std::vector<at::Tensor> tokens =
      pictures.Forward(features, std::vector<Resolution>{kWide, kHigh});
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_EQ(tokens[0].sizes(), (std::vector<int64_t>{9 + 3 * 7, 36}));
  EXPECT_EQ(tokens[1].sizes(), (std::vector<int64_t>{9 + 6 * 4, 36}));
  const at::Tensor projected = pictures.projector().Forward(features[0]);
  EXPECT_LT(MaxDifference(tokens[0].narrow(0, 0, 9), projected.narrow(0, 0, 9)), 1e-5);
  // The first row of the map: of the left tile, of the right one, the newline.
  EXPECT_LT(MaxDifference(tokens[0].narrow(0, 9, 3), projected.narrow(0, 9, 3)), 1e-5);
  EXPECT_LT(MaxDifference(tokens[0].narrow(0, 12, 3), projected.narrow(0, 18, 3)), 1e-5);
  EXPECT_LT(MaxDifference(tokens[0][15], at::linspace(-1, 1, 36)), 1e-6);
}

TEST(PictureProjectorTest, TellsWhatDoesNotFit) {
  const LanguageCheckpoint checkpoint = TinyTiles();
  const PictureProjector pictures(checkpoint, at::kCPU, at::kFloat);
  const std::vector<at::Tensor> tiles = {ThreeTiles(1)}, plain = {TinyFeatures(1)};
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { pictures.Forward(tiles, {}); }),
              AllOf(HasSubstr("1 pictures"), HasSubstr("sizes of 0")));
  EXPECT_THAT(ErrorOf<std::invalid_argument>(
                  [&] { pictures.Forward(plain, std::vector<Resolution>{kWide}); }),
              AllOf(HasSubstr("[9, 24]"), HasSubstr("[27, 24]")));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] {
                pictures.Forward(tiles, std::vector<Resolution>{{0, 3}});
              }),
              HasSubstr("0 x 3"));
  LanguageCheckpoint without = checkpoint;
  without.tensors.Remove("model.image_newline");
  EXPECT_THROW(PictureProjector(without, at::kCPU, at::kFloat), std::runtime_error);
}

TEST(PictureProjectorTest, PicturesOfAllShapesStandInOnePrompt) {
  const LanguageCheckpoint checkpoint = TinyTiles();
  const Llava model(checkpoint, at::kCPU, at::kFloat);
  const std::vector<int32_t> ids = {1, kImageToken, 5, 6, kImageToken, kImageToken, 7};
  const std::vector<at::Tensor> features = {ThreeTiles(1), ThreeTiles(5), ThreeTiles(9)};
  const std::vector<Resolution> sizes = {kWide, kLow, kHigh};
  const int64_t length = 4 + (9 + 21) + (9 + 7) + (9 + 24);
  EXPECT_EQ(ExpandedLength(model, ids, sizes), length);
  const at::Tensor prompt = model.Embed(ids, features, sizes);
  EXPECT_EQ(prompt.size(0), length);
  const std::vector<int64_t> values = {10, 20, 30, 40, 50, 60, 70};
  const std::vector<int64_t> expanded = model.Expand(ids, values, -1, sizes);
  ASSERT_EQ(static_cast<int64_t>(expanded.size()), length);
  EXPECT_EQ(expanded[1 + 30], 30);
  EXPECT_EQ(expanded[length - 1], 70);
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { ExpandedLength(model, ids); }),
              AllOf(HasSubstr("3 image marks"), HasSubstr("sizes of 0")));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { model.Embed(ids, features); }),
              HasSubstr("sizes of 0"));

  // Pieces of a served prompt, also where a piece ends within a picture.
  for (const int64_t piece : {1, 5, 16, 1000}) {
    const ServingModel serving(checkpoint, at::kCPU, {.kv_bytes = 1 << 20});
    PromptRows rows(serving, ids, features, sizes);
    ASSERT_EQ(rows.size(), length);
    std::vector<at::Tensor> parts;
    for (int64_t row = 0; row < length; row += piece) {
      parts.push_back(rows.Slice(row, std::min(piece, length - row)));
    }
    EXPECT_LT(MaxDifference(at::cat(parts), prompt), 1e-5) << piece;
  }
  const ServingModel serving(checkpoint, at::kCPU, {.kv_bytes = 1 << 20});
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { PromptRows(serving, ids, features); }),
              HasSubstr("sizes of 0"));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] {
                PromptRows(serving, {1, -5}, {});
              }),
              HasSubstr("the token id -5"));
}

TEST(PictureProjectorTest, AnswersFollowUpsAboutTiles) {
  const LanguageCheckpoint checkpoint = TinyTiles();
  const Llava model(checkpoint, at::kCPU, at::kFloat);
  const std::vector<at::Tensor> features = {ThreeTiles(1), ThreeTiles(5)};
  const std::vector<Resolution> sizes = {kLow, kHigh};
  const StopOptions stop = {.max_new_tokens = 6, .ignore_eos = true};
  Generator generator(model, model.Project(features, sizes));
  const std::vector<std::vector<int32_t>> prompts = {{1, kImageToken, 5, kImageToken},
                                                     {1, kImageToken, 5, kImageToken, 8},
                                                     {1, kImageToken, 6, kImageToken, 8}};
  for (const std::vector<int32_t>& ids : prompts) {
    const GenerateResult expected = Generate(model, ids, features, {}, stop, sizes);
    const GenerateResult result = generator.Reply(ids, {}, stop);
    EXPECT_EQ(result.ids, expected.ids);
    EXPECT_EQ(result.prompt_tokens, ExpandedLength(model, ids, sizes));
  }
}

TEST(PictureProjectorTest, SelfTestsHoldSizes) {
  const LanguageCheckpoint checkpoint = TinyTiles();
  const std::vector<int32_t> ids = {1, kImageToken, 5, 6, 7};
  const std::vector<int64_t> labels = {-100, -100, -100, 6, 7};
  const SelfTest test = MakeSelfTest(checkpoint, ids, labels, {ThreeTiles(1)}, at::kCPU, {kLow});
  EXPECT_EQ(test.tensors.at("sizes").numel(), 2);
  EXPECT_LT(CheckSelfTest(Llava(checkpoint, at::kCPU, at::kFloat), test), 1e-5);
  ServingModel serving(checkpoint, at::kCPU, {.kv_bytes = 1 << 20});
  EXPECT_LT(CheckSelfTest(serving, test, 4), 1e-3);
  SelfTest without = test;
  without.tensors.erase("sizes");
  EXPECT_ANY_THROW(CheckSelfTest(serving, without));
}

TEST(PictureProjectorTest, SelfTestsHoldPicturesOfSeveralNumbersOfTiles) {
  LanguageCheckpoint checkpoint = TinyTiles();
  checkpoint.config.features.grid = {{6, 6}, {6, 12}};
  const std::vector<int32_t> ids = {1, kImageToken, 5, kImageToken, 6, 7};
  const std::vector<int64_t> labels = {-100, -100, -100, -100, 6, 7};
  const at::Tensor square = at::cat({TinyFeatures(1), TinyFeatures(2)});
  const SelfTest test =
      MakeSelfTest(checkpoint, ids, labels, {square, ThreeTiles(3)}, at::kCPU, {{30, 30}, kHigh});
  EXPECT_EQ(test.tensors.at("features").sizes(), (at::IntArrayRef{9 * 5, 24}));
  EXPECT_LT(CheckSelfTest(Llava(checkpoint, at::kCPU, at::kFloat), test), 1e-5);
  ServingModel serving(checkpoint, at::kCPU, {.kv_bytes = 1 << 20});
  EXPECT_LT(CheckSelfTest(serving, test, 4), 1e-3);
  SelfTest wrong = test;
  wrong.tensors["rows"] = at::tensor({18, 28}, at::kLong);
  EXPECT_THROW(CheckSelfTest(serving, wrong), std::runtime_error);
}

TEST(PictureProjectorTest, NamesTheNewlineAmongItsParameters) {
  Llava model(TinyTiles(), at::kCPU, at::kFloat);
  std::vector<std::string> names;
  model.VisitParameters([&](const std::string& name, at::Tensor&) { names.push_back(name); });
  EXPECT_EQ(names[4], "model.image_newline");
  EXPECT_EQ(names[5], "model.embed_tokens.weight");
}

}  // namespace
}  // namespace llava
