// LLaVA-1.6 against what transformers makes of it: next.safetensors and next_layout.json
// (next_golden.py).

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/picture_shape.h"
#include "model/image/anyres.h"
#include "model/image/decode.h"
#include "model/llava/generate.h"
#include "model/llava/picture_projector.h"
#include "model/llava/serving_model.h"
#include "model/nn/clip.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/model/llava/prompts.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

using Pictures = std::vector<std::string>;

FeatureConfig AnyresOf(int side) {
  FeatureConfig features;
  features.image_mode = ImageMode::kAnyres;
  features.grid = {
      {side, 2 * side}, {2 * side, side}, {2 * side, 2 * side}, {3 * side, side}, {side, 3 * side}};
  features.tile_size = side;
  return features;
}

nlohmann::json Layout() {
  return nlohmann::json::parse(std::ifstream(SourceDir() + "/tests/parity/next_layout.json"));
}

TEST(NextParityTest, LaysRowsOutAsTransformers) {
  const PictureShape shape(AnyresOf(56), 16);
  const nlohmann::json layouts = Layout().at("layouts");
  ASSERT_GE(layouts.size(), 40u);
  for (const nlohmann::json& layout : layouts) {
    const Resolution size = {layout.at("size")[0], layout.at("size")[1]};
    const at::Tensor rows = at::arange(shape.NumRows(size), at::kFloat).view({-1, 1});
    const at::Tensor found = LayOutTiles(rows, shape.MapOf(size), at::full({1}, -1.0));
    const auto expected = layout.at("rows").get<std::vector<float>>();
    EXPECT_EQ(shape.NumTokens(size), static_cast<int64_t>(expected.size())) << layout.at("size");
    EXPECT_TRUE(at::equal(found.flatten(), at::tensor(expected))) << layout.at("size");
  }
}

TEST(NextParityTest, CountsTokensAsTransformers) {
  const PictureShape shape(AnyresOf(336), 576);
  const nlohmann::json counts = Layout().at("counts");
  ASSERT_GE(counts.size(), 400u);
  int64_t most = 0;
  for (const nlohmann::json& count : counts) {
    const Resolution size = {count[0], count[1]};
    EXPECT_EQ(shape.NumTokens(size), count[2].get<int64_t>()) << count.dump();
    EXPECT_LE(shape.NumTokens(size), shape.most_tokens());
    most = std::max(most, shape.NumTokens(size));
  }
  EXPECT_EQ(shape.most_tokens(), 576 + 48 * 49);
  EXPECT_EQ(shape.NumTokens(shape.largest()), shape.most_tokens());
}

// A checkpoint with its tower, and the pictures of each case.
class NextModelTest : public ::testing::Test {
 protected:
  void Open(const std::filesystem::path& path) {
    language_ = OpenLanguage(path);
    const TowerCheckpoint tower = OpenTower(path);
    tower_ = std::make_unique<ClipTower>(tower.config, tower.tensors, at::kCPU, at::kFloat);
  }
  // Features and sizes of a case's pictures.
  void See(const Pictures& names) {
    const PreprocessConfig& preprocess = tower_->config().preprocess;
    features_.clear();
    sizes_.clear();
    for (const std::string& name : names) {
      const std::string bytes = ReadBytes(OwnFixturesDir() / "images" / name);
      const Image image =
          DecodeImage({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
      std::vector<at::Tensor> tiles;
      for (const Image& tile : AnyresTiles(image, language_.config.features.grid, preprocess)) {
        tiles.push_back(at::tensor(NormalizePixels(tile, preprocess))
                            .view({3, preprocess.image_size, preprocess.image_size}));
      }
      features_.push_back(
          tower_->Features(at::stack(tiles), language_.config.features).flatten(0, 1));
      sizes_.push_back({image.width, image.height});
    }
  }
  static std::vector<int32_t> IdsOf(const std::string& name) {
    const at::Tensor ids = NextGolden(name).to(at::kInt).contiguous();
    return {ids.const_data_ptr<int32_t>(), ids.const_data_ptr<int32_t>() + ids.numel()};
  }
  static StopOptions All(size_t tokens) {
    return {.max_new_tokens = static_cast<uint32_t>(tokens), .ignore_eos = true};
  }

  const at::NoGradGuard guard_;
  const TempFolder folder_;
  LanguageCheckpoint language_;
  std::unique_ptr<ClipTower> tower_;
  std::vector<at::Tensor> features_;
  std::vector<Resolution> sizes_;
};

const std::map<std::string, Pictures> kCases = {
    {"one", {"tall_37x200.png"}},
    {"two", {"plain.png", "tall_37x200.png"}},
    {"small", {"small_upscale.png", "gray.png", "rgba.png"}}};

TEST_F(NextModelTest, SaysWhatTransformersSays) {
  Open(WriteTinyNext(folder_.path() / "next"));
  const Llava model(language_, at::kCPU, at::kFloat);
  ServingOptions options;
  options.kv_bytes = 4 << 20;
  const ServingModel serving(language_, at::kCPU, options);
  for (const auto& [name, pictures] : kCases) {
    SCOPED_TRACE(name);
    See(pictures);
    const std::vector<int32_t> ids = IdsOf(name + "/input_ids");
    const std::vector<int32_t> tokens = IdsOf(name + "/tokens");
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(model.picture_shape().NumTokens(sizes_[i]), tokens[i]);
    }
    const at::Tensor prompt = model.Embed(ids, features_, sizes_);
    EXPECT_EQ(prompt.size(0), ExpandedLength(model, ids, sizes_));
    const Segment segment{.tokens = prompt.size(0)};
    const at::Tensor hidden = model.decoder().Forward(prompt, {&segment, 1});
    const at::Tensor expected = NextGolden(name + "/logits");
    EXPECT_LT((model.decoder().Logits(hidden.narrow(0, prompt.size(0) - 6, 6)) - expected)
                  .abs()
                  .max()
                  .item<float>(),
              5e-4);
    const std::vector<int32_t> greedy = IdsOf(name + "/greedy");
    EXPECT_EQ(Generate(model, ids, features_, {}, All(greedy.size()), sizes_).ids, greedy);

    // What is served sees the same rows, in pieces of any size.
    PromptRows rows(serving, ids, features_, sizes_);
    ASSERT_EQ(rows.size(), prompt.size(0));
    std::vector<at::Tensor> parts;
    for (int64_t row = 0; row < rows.size(); row += 7) {
      parts.push_back(rows.Slice(row, std::min<int64_t>(7, rows.size() - row)));
    }
    EXPECT_LT((at::cat(parts).to(at::kFloat) - prompt).abs().max().item<float>(), 1e-4);
  }
}

TEST_F(NextModelTest, MistralIsADecoderToo) {
  const auto path = WriteTinyNext(folder_.path() / "next");
  EditJson(path / "config.json", [](nlohmann::json& config) {
    config["text_config"]["model_type"] = "mistral";
    config["text_config"]["rope_theta"] = 1e6;
    config["text_config"]["sliding_window"] = nullptr;
  });
  Open(path);
  See(kCases.at("one"));
  const Llava model(language_, at::kCPU, at::kFloat);
  const std::vector<int32_t> greedy = IdsOf("mistral/one/greedy");
  EXPECT_NE(greedy, IdsOf("one/greedy")) << "the test would not see theta";
  EXPECT_EQ(
      Generate(model, IdsOf("mistral/one/input_ids"), features_, {}, All(greedy.size()), sizes_)
          .ids,
      greedy);
}

// The same weights in the original layout, whose pairs have the width first, rounded to bfloat16.
TEST_F(NextModelTest, BothLayoutsAreOneModel) {
  Open(WriteTinyNext(folder_.path() / "next"));
  const FeatureConfig nested = language_.config.features;
  Open(WriteOriginalNext(folder_.path() / "original"));
  EXPECT_EQ(language_.config.features.grid, nested.grid);
  EXPECT_EQ(language_.config.features.tile_size, nested.tile_size);
  See(kCases.at("two"));
  const Llava model(language_, at::kCPU, at::kFloat);
  const std::vector<int32_t> ids = IdsOf("two/input_ids");
  const at::Tensor prompt = model.Embed(ids, features_, sizes_);
  const Segment segment{.tokens = prompt.size(0)};
  const at::Tensor hidden = model.decoder().Forward(prompt, {&segment, 1});
  const at::Tensor logits = model.decoder().Logits(hidden.narrow(0, prompt.size(0) - 6, 6));
  const at::Tensor expected = NextGolden("two/logits").narrow(1, 0, logits.size(1));
  EXPECT_GT(at::cosine_similarity(logits, expected, 1).min().item<float>(), 0.99);
}

}  // namespace
}  // namespace llava
