#include "model/llava/llava.h"

#include <cmath>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/text/labels.h"
#include "tests/model/llava/prompts.h"
#include "tests/model/llava/tiny_llava.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/support/error_of.h"

namespace llava {
namespace {

constexpr int32_t kImage = kImageToken;

TEST(LlavaTest, SplicesPicturesWhereTheMarksStand) {
  const Llava model = TinyLlava();
  const at::Tensor first = TinyFeatures(1), second = TinyFeatures(2);
  const std::vector<int32_t> ids = {kImage, 5, 6, kImage, 7};
  EXPECT_EQ(ExpandedLength(model, ids), 3 + 2 * 9);
  const std::vector<at::Tensor> features = {first, second};
  const at::Tensor out = model.Embed(ids, features);
  const auto words = [&](std::vector<int64_t> w) { return model.decoder().Embed(at::tensor(w)); };
  const at::Tensor expected = at::cat({model.projector().Forward(first), words({5, 6}),
                                       model.projector().Forward(second), words({7})});
  EXPECT_LT(MaxDifference(out, expected), 1e-5);
  const std::vector<int32_t> text = {5, 6};
  EXPECT_TRUE(at::equal(model.Embed(text, {}), words({5, 6})));
  const std::vector<at::Tensor> narrow = {first.to(at::kBFloat16), second};
  EXPECT_EQ(model.Embed(ids, narrow).scalar_type(), at::kFloat);
}

TEST(LlavaTest, ExpandRepeatsTheFillForImageTokens) {
  const Llava model = TinyLlava();
  const std::vector<int32_t> ids = {1, kImage, 4};
  const std::vector<int64_t> values = {10, 20, 30};
  std::vector<int64_t> expected(11, kIgnoreLabel);
  expected.front() = 10;
  expected.back() = 30;
  EXPECT_EQ(model.Expand(ids, values, kIgnoreLabel), expected);
  EXPECT_THROW(model.Expand(ids, std::vector<int64_t>{1, 2}, 0), std::invalid_argument);
}

TEST(LlavaTest, TellsBothNumbersOfWhatDoesNotFit) {
  const Llava model = TinyLlava();
  const std::vector<int32_t> two = {kImage, 4, kImage}, one = {kImage};
  const std::vector<at::Tensor> single = {TinyFeatures(1)}, odd = {at::zeros({8, 24})};
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { model.Embed(two, single); }),
              testing::AllOf(testing::HasSubstr("2 image marks"), testing::HasSubstr("1 picture")));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { model.Embed(one, odd); }),
              testing::AllOf(testing::HasSubstr("[8, 24]"), testing::HasSubstr("[9, 24]")));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] {
                model.Embed(std::vector<int32_t>{4, 5300}, {});
              }),
              testing::HasSubstr("5300"));
}

TEST(LlavaTest, EmbedIsProjectAndSplice) {
  const Llava model = TinyLlava();
  const std::vector<int32_t> ids = {1, kImage, 4, kImage};
  const std::vector<at::Tensor> features = {TinyFeatures(1), TinyFeatures(2)};
  const std::vector<at::Tensor> projected = model.Project(features);
  ASSERT_EQ(projected.size(), 2u);
  EXPECT_EQ(projected[1].sizes(), (std::vector<int64_t>{9, 36}));
  EXPECT_TRUE(at::equal(model.Splice(ids, projected), model.Embed(ids, features)));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] {
                model.Splice(ids, {&projected[0], 1});
              }),
              testing::AllOf(testing::HasSubstr("2 image marks"), testing::HasSubstr("1 picture")));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { model.Splice(ids, features); }),
              testing::AllOf(testing::HasSubstr("[9, 24]"), testing::HasSubstr("[9, 36]")));
}

TEST(LlavaTest, VisitsProjectorThenDecoder) {
  Llava model = TinyLlava();
  std::vector<std::string> names;
  model.VisitParameters([&](const std::string& name, at::Tensor&) { names.push_back(name); });
  EXPECT_EQ(names.front(), "model.mm_projector.0.weight");
  EXPECT_EQ(names[4], "model.embed_tokens.weight");
  EXPECT_EQ(names.back(), "lm_head.weight");
}

struct Sample {
  std::vector<int32_t> ids;
  std::vector<int64_t> labels;
  std::vector<at::Tensor> features;
};

LabelledSample View(const Sample& s) { return {s.ids, s.labels, s.features}; }

std::vector<Sample> Samples() {
  return {{{1, kImage, 8, 9, 10, 2}, {-100, -100, -100, 9, 10, 2}, {TinyFeatures(1)}},
          {{1, 20, 21}, {1, -100, 21}, {}}};  // the first label has nothing to predict it from
}

TEST(LossTest, IsTheMeanOverAllLabelledTokens) {
  const Llava model = TinyLlava();
  const std::vector<Sample> samples = Samples();
  double sum = 0;
  int count = 0;
  std::vector<LabelledSample> batch;
  for (const Sample& sample : samples) {
    batch.push_back(View(sample));
    const at::Tensor embeddings = model.Embed(sample.ids, sample.features);
    const Segment segment{.tokens = embeddings.size(0)};
    const at::Tensor logprobs = at::log_softmax(
        model.decoder().Logits(model.decoder().Forward(embeddings, {&segment, 1})), -1);
    const std::vector<int64_t> labels = model.Expand(sample.ids, sample.labels, kIgnoreLabel);
    for (size_t i = 1; i < labels.size(); ++i) {
      if (labels[i] == kIgnoreLabel) continue;
      sum -= logprobs[i - 1][labels[i]].item<double>();
      ++count;
    }
  }
  EXPECT_EQ(count, 4);
  EXPECT_NEAR(Predict(model, batch).Loss().item<double>(), sum / count, 1e-5);
}

TEST(LossTest, CountsTheTokensThatAreTheLikeliest) {
  const Llava model = TinyLlava();
  std::vector<Sample> samples = Samples();
  const auto right = [&] {
    const std::vector<LabelledSample> batch = {View(samples[0]), View(samples[1])};
    return Predict(model, batch).NumRight();
  };
  EXPECT_EQ(right(), 0);
  const std::vector<LabelledSample> batch = {View(samples[0]), View(samples[1])};
  const at::Tensor likeliest = Predict(model, batch).logits.argmax(1);
  ASSERT_EQ(likeliest.size(0), 4);  // the last one is that of the second sample
  samples[0].labels[3] = likeliest[0].item<int64_t>();
  EXPECT_EQ(right(), 1);
  samples[1].labels[2] = likeliest[3].item<int64_t>();
  EXPECT_EQ(right(), 2);
}

TEST(LossTest, HasTheGradientOfADifferenceQuotient) {
  Llava model = TinyLlava();
  std::map<std::string, at::Tensor> parameters;
  model.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
    parameter.requires_grad_();
    parameters[name] = parameter;
  });
  const std::vector<Sample> samples = Samples();
  const std::vector<LabelledSample> batch = {View(samples[0]), View(samples[1])};
  Predict(model, batch).Loss().backward();
  at::NoGradGuard guard;
  for (const char* name : {"model.mm_projector.0.weight", "model.layers.0.self_attn.k_proj.weight",
                           "model.layers.1.mlp.down_proj.weight", "model.norm.weight",
                           "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"}) {
    at::Tensor parameter = parameters.at(name);
    const at::Tensor gradient = parameter.grad().clone();
    const at::Tensor direction = gradient / gradient.norm();
    const double step = 1e-2;
    parameter.add_(direction, step);
    const double above = Predict(model, batch).Loss().item<double>();
    parameter.add_(direction, -2 * step);
    const double below = Predict(model, batch).Loss().item<double>();
    parameter.add_(direction, step);
    const double slope = gradient.norm().item<double>();
    EXPECT_NEAR((above - below) / (2 * step), slope, 0.01 * slope + 1e-4) << name;
  }
}

TEST(LossTest, RefusesABatchWithoutLabels) {
  const Llava model = TinyLlava();
  Sample sample{{1, 20, 21}, {1, -100, -100}, {}};
  const LabelledSample view = View(sample);
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] {
                Predict(model, {&view, 1});
              }),
              testing::HasSubstr("label"));
  sample.labels = {-100, 20, 54};
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] {
                const LabelledSample bad = View(sample);
                Predict(model, {&bad, 1});
              }),
              testing::HasSubstr("54"));
}

TEST(LossTest, RefusesBranchesThatDoNotAddUpOrAreEmpty) {
  const Llava model = TinyLlava();
  const Sample sample{{1, 20, 21, 22}, {1, 20, 21, 22}, {}};
  const std::vector<std::vector<int64_t>> wrong = {{2}, {3, 0}, {4, -1}};
  for (const std::vector<int64_t>& branches : wrong) {
    LabelledSample view = View(sample);
    view.shared = 1;
    view.branches = branches;
    EXPECT_THAT(ErrorOf<std::invalid_argument>([&] {
                  Predict(model, {&view, 1});
                }),
                testing::HasSubstr("branches"));
  }
}

}  // namespace
}  // namespace llava
