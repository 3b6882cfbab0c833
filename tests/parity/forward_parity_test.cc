// expected/forward.safetensors: the splice and the decoder, in every kind of weights and
// arithmetic.

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "tests/model/llava/prompts.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

const FixtureFolder& Folder() { return FixtureFolder::Get(); }
at::Tensor Expected(const std::string& name) { return Folder().Expected("forward", name); }

std::vector<int32_t> IdsOfTensor(const std::string& name) {
  const at::Tensor ids = Folder().Tensors("forward").Get(name).to(at::kInt).contiguous();
  return {ids.const_data_ptr<int32_t>(), ids.const_data_ptr<int32_t>() + ids.numel()};
}

// The picture and prompt of all multimodal rows: "single_turn" of generation.json.
std::string Image() {
  for (const auto& row : Folder().Json("generation")) {
    if (row.at("name") == "single_turn") return row.at("image");
  }
  throw std::runtime_error("generation.json has no row single_turn");
}

at::Tensor LogitsOf(const Llava& model, const at::Tensor& embeddings,
                    std::vector<at::Tensor>* hidden_states = nullptr) {
  const Segment segment{.tokens = embeddings.size(0)};
  return model.decoder().Logits(model.decoder().Forward(embeddings, {&segment, 1}, hidden_states));
}

at::Tensor LastRows(const at::Tensor& logits, const std::string& name) {
  const int64_t rows = Expected(name).size(0);
  return logits.narrow(0, logits.size(0) - rows, rows);
}

class ForwardParityTest : public testing::Test {
 protected:
  at::NoGradGuard guard_;
  std::vector<at::Tensor> features_ = {Folder().Features(Image())};
};

TEST_F(ForwardParityTest, OriginalLayout) {
  for (const std::string folder : {"orig-f32", "tiny-llava"}) {
    SCOPED_TRACE(folder);
    const Llava& model = Folder().Language(folder);
    const at::Tensor embeddings = model.Embed(IdsOfTensor("orig/input_ids"), features_);
    EXPECT_TRUE(IsNear("orig/inputs_embeds", embeddings, Expected("orig/inputs_embeds")));
    std::vector<at::Tensor> hidden;
    const at::Tensor logits = LogitsOf(model, embeddings, &hidden);
    ASSERT_EQ(static_cast<int64_t>(hidden.size()), model.config().decoder.num_layers + 1);
    for (size_t i = 0; i < hidden.size(); ++i) {
      const std::string name = "orig/hidden_" + std::to_string(i);
      EXPECT_TRUE(IsNear(name, hidden[i], Expected(name)));
    }
    const at::Tensor expected = Expected("orig/logits");
    EXPECT_TRUE(IsNear("orig/logits", logits.narrow(1, 0, expected.size(1)), expected));
  }
}

TEST_F(ForwardParityTest, LlavaHfLayoutWithItsPaddedVocabulary) {
  const Llava& model = Folder().Language("tiny-llava");
  // There the picture is a run of image tokens in the ids.
  const int32_t image_token = Folder().Json("tokenization").at("image_token");
  std::vector<int32_t> ids;
  for (const int32_t id : IdsOfTensor("hf/input_ids")) {
    const bool run_goes_on = !ids.empty() && ids.back() == kImageToken && id == image_token;
    if (!run_goes_on) ids.push_back(id == image_token ? kImageToken : id);
  }
  EXPECT_EQ(ExpandedLength(model, ids), static_cast<int64_t>(IdsOfTensor("hf/input_ids").size()));
  EXPECT_TRUE(
      IsNear("hf/logits", LogitsOf(model, model.Embed(ids, features_)), Expected("hf/logits")));
}

TEST_F(ForwardParityTest, TextAlone) {
  const Llava& model = Folder().Language("orig-f32");
  EXPECT_TRUE(IsNear("text/logits", LogitsOf(model, model.Embed(IdsOfTensor("text/input_ids"), {})),
                     Expected("text/logits")));
}

TEST_F(ForwardParityTest, BFloat16WeightsInFloat32Arithmetic) {
  const std::string name = "bf16_weights_f32_compute/";
  const Llava& model = Folder().Language("orig-bf16");
  // Its own tower, inside the checkpoint, is rounded too.
  const at::Tensor pixels = Folder().Expected("images", "pad/" + Image()).unsqueeze(0);
  const at::Tensor own = Folder().Tower("orig-bf16").Features(pixels, model.config().features)[0];
  EXPECT_TRUE(
      IsNear(name + "projected", model.projector().Forward(own), Expected(name + "projected")));
  const std::vector<at::Tensor> features = {own};
  const at::Tensor logits = LogitsOf(model, model.Embed(IdsOfTensor("orig/input_ids"), features));
  EXPECT_TRUE(IsNear(name + "logits_last8", LastRows(logits, name + "logits_last8"),
                     Expected(name + "logits_last8")));
}

TEST_F(ForwardParityTest, BFloat16Arithmetic) {
  const std::string name = "bf16_compute/logits_last8";
  const TowerCheckpoint checkpoint = OpenTower(Folder().root() / "orig-bf16");
  const ClipTower tower(checkpoint.config, checkpoint.tensors, Folder().device(), at::kBFloat16);
  const Llava model = Folder().LoadLanguage("orig-bf16", at::kBFloat16);
  const at::Tensor pixels = Folder().Expected("images", "pad/" + Image()).unsqueeze(0);
  const std::vector<at::Tensor> features = {tower.Features(pixels, model.config().features)[0]};
  EXPECT_EQ(features[0].scalar_type(), at::kBFloat16);
  const at::Tensor logits = LogitsOf(model, model.Embed(IdsOfTensor("orig/input_ids"), features));
  EXPECT_TRUE(IsNear(name, LastRows(logits, name), Expected(name)));
}

TEST_F(ForwardParityTest, LinearProjectorOverTheOriginalLayout) {
  const std::string name = "linear_projector/logits_last8";
  LanguageCheckpoint checkpoint = Folder().OpenLanguage("orig-f32");
  OverlayProjector(checkpoint, Folder().root() / "stage1-linear");
  const Llava model(checkpoint, Folder().device(), at::kFloat);
  const at::Tensor logits = LogitsOf(model, model.Embed(IdsOfTensor("orig/input_ids"), features_));
  EXPECT_TRUE(IsNear(name, LastRows(logits, name), Expected(name)));
}

TEST_F(ForwardParityTest, PiecewiseWithACacheInABatchWithAnother) {
  const Llava& model = Folder().Language("orig-f32");
  const LlamaDecoder& decoder = model.decoder();
  const at::Tensor picture = model.Embed(IdsOfTensor("orig/input_ids"), features_);
  const at::Tensor text = model.Embed(IdsOfTensor("text/input_ids"), {});
  KvCache picture_cache(decoder.config(), decoder.device(), decoder.dtype());
  KvCache text_cache(decoder.config(), decoder.device(), decoder.dtype());
  std::vector<at::Tensor> picture_logits, text_logits;
  // Chunks of unequal sizes; towards the end only the longer sequence is left.
  for (int64_t p = 0, t = 0, step = 0; p < picture.size(0); ++step) {
    const int64_t p_rows = std::min<int64_t>(step % 3 == 0 ? 17 : 1, picture.size(0) - p);
    const int64_t t_rows = std::min<int64_t>(step % 2 == 0 ? 5 : 1, text.size(0) - t);
    std::vector<Segment> segments = {{.tokens = p_rows, .cache = &picture_cache}};
    at::Tensor rows = picture.narrow(0, p, p_rows);
    if (t_rows > 0) {
      segments.push_back({.tokens = t_rows, .cache = &text_cache});
      rows = at::cat({rows, text.narrow(0, t, t_rows)});
    }
    const at::Tensor logits = decoder.Logits(decoder.Forward(rows, segments));
    picture_logits.push_back(logits.narrow(0, 0, p_rows));
    text_logits.push_back(logits.narrow(0, p_rows, t_rows));
    p += p_rows;
    t += t_rows;
  }
  EXPECT_TRUE(IsNear("orig/logits", at::cat(picture_logits), Expected("orig/logits")));
  const int64_t done = text_cache.length();
  EXPECT_TRUE(
      IsNear("text/logits", at::cat(text_logits), Expected("text/logits").narrow(0, 0, done)));
}

}  // namespace
}  // namespace llava
