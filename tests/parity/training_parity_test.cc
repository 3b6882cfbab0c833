// expected/training.json and .safetensors: losses, gradients and ten optimizer steps of both
// stages.

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/checkpoint/memory_tensors.h"
#include "model/text/labels.h"
#include "model/train/optimizer.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

using nlohmann::json;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }
const json& Training() { return Folder().Json("training"); }

struct Sample {
  std::vector<int32_t> ids;
  std::vector<int64_t> labels;
  std::vector<at::Tensor> features;
};

Sample SampleOf(const json& entry) {
  const json& row = Folder().Json("labels").at("labels").at(entry.at("label_key"));
  Sample sample{.ids = IdsOf(row.at("input_ids")),
                .labels = row.at("labels").get<std::vector<int64_t>>(),
                .features = {}};
  if (!entry.at("image").is_null()) sample.features = {Folder().Features(entry.at("image"))};
  return sample;
}

// A stage in the making: model, its trained parameters, the samples.
class Stage {
 public:
  explicit Stage(const std::string& name, Llava model = Folder().LoadLanguage("orig-f32"))
      : name_(name), model_(std::move(model)) {
    for (const json& entry : Training().at("samples").at(name)) samples_.push_back(SampleOf(entry));
    Train([&](const std::string& parameter) {
      return name_ == "stage2" || parameter.find("mm_projector") != std::string::npos;
    });
  }
  // Of the fixture's adapters and the projector.
  Stage(const std::string& name, int64_t rank, double alpha) : Stage(name) {
    std::map<std::string, at::Tensor> adapters;
    const std::string peft = "base_model.model.";
    const auto file = TensorFile::Open(Folder().root() / "lora/adapter_model.safetensors");
    for (const auto& [stored, info] : file->tensors()) {
      adapters[stored.substr(peft.size())] = file->Get(stored).clone();
    }
    model_.decoder().Adapt({.rank = rank, .alpha = alpha}, MemoryTensors(std::move(adapters)));
    Train([](const std::string& parameter) {
      return parameter.find("mm_projector") != std::string::npos ||
             parameter.find(".lora_") != std::string::npos;
    });
  }

  const json& expected() const { return Training().at(name_); }
  const std::string& name() const { return name_; }
  const Llava& model() const { return model_; }
  const std::map<std::string, at::Tensor>& trained() const { return trained_; }
  const Sample& sample(size_t i) const { return samples_.at(i); }
  size_t num_samples() const { return samples_.size(); }

  std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> result;
    for (const auto& [name, parameter] : trained_) result.push_back(parameter);
    return result;
  }
  at::Tensor LossOf(const std::vector<size_t>& batch) const {
    std::vector<LabelledSample> views;
    for (const size_t i : batch) {
      views.push_back({samples_.at(i).ids, samples_.at(i).labels, samples_.at(i).features});
    }
    return Predict(model_, views).Loss();
  }
  // The last rows up to the last labelled token of a sample: [count, V].
  at::Tensor LogitsBeforeTheEnd(size_t i, int64_t count) const {
    at::NoGradGuard guard;
    const Sample& sample = samples_.at(i);
    const auto labels = model_.Expand(sample.ids, sample.labels, kIgnoreLabel);
    int64_t end = static_cast<int64_t>(labels.size());
    while (labels[static_cast<size_t>(end - 1)] == kIgnoreLabel) --end;
    const Segment segment{.tokens = static_cast<int64_t>(labels.size())};
    const at::Tensor hidden =
        model_.decoder().Forward(model_.Embed(sample.ids, sample.features), {&segment, 1});
    return model_.decoder().Logits(hidden.narrow(0, end - count, count));
  }
  double LossWithoutGradient(const std::vector<size_t>& batch) const {
    at::NoGradGuard guard;
    return LossOf(batch).item<double>();
  }

 private:
  void Train(const std::function<bool(const std::string&)>& trains) {
    trained_.clear();
    model_.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
      parameter.requires_grad_(trains(name));
      if (trains(name)) trained_.emplace(name, parameter);
    });
  }

  std::string name_;
  Llava model_;
  std::vector<Sample> samples_;
  std::map<std::string, at::Tensor> trained_;
};

std::vector<size_t> BatchOf(const json& json) {
  return json.at("batch").get<std::vector<size_t>>();
}

class TrainingParityTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Stages, TrainingParityTest, testing::Values("stage1", "stage2"));

TEST_P(TrainingParityTest, LabelsOfTheExpandedBatch) {
  const Stage stage(GetParam());
  const at::Tensor expected =
      Folder().Tensors("training").Get(stage.name() + "/labels_expanded").contiguous();
  int64_t row = 0, with_loss = 0;
  for (const size_t i : BatchOf(stage.expected())) {
    std::vector<int64_t> labels =
        stage.model().Expand(stage.sample(i).ids, stage.sample(i).labels, kIgnoreLabel);
    with_loss += std::count_if(labels.begin() + 1, labels.end(),
                               [](int64_t label) { return label != kIgnoreLabel; });
    ASSERT_LE(static_cast<int64_t>(labels.size()), expected.size(1));
    labels.resize(expected.size(1), kIgnoreLabel);  // there the batch is padded on the right
    EXPECT_TRUE(at::equal(at::tensor(labels), expected[row])) << stage.name() << " row " << row;
    ++row;
  }
  EXPECT_EQ(row, expected.size(0));
  EXPECT_EQ(with_loss, stage.expected().at("tokens_with_loss"));
}

TEST_P(TrainingParityTest, LossOfBatchAndOfEachSampleAlone) {
  const Stage stage(GetParam());
  const std::string path = stage.name() + "/loss";
  EXPECT_TRUE(IsNear(path, stage.LossWithoutGradient(BatchOf(stage.expected())),
                     stage.expected().at("loss").get<double>()));
  const json& alone = stage.expected().at("loss_per_sample_alone");
  ASSERT_EQ(alone.size(), stage.num_samples());
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_TRUE(IsNear(path + "_per_sample_alone/" + std::to_string(i),
                       stage.LossWithoutGradient({i}), alone[i].get<double>()));
  }
}

TEST(TrainingParityTest, BatchWithAndWithoutPicture) {
  const Stage stage("stage2");
  std::vector<size_t> batch;  // the first of each kind
  for (const bool with : {true, false}) {
    for (size_t i = 0; i < stage.num_samples(); ++i) {
      if (stage.sample(i).features.empty() == with) continue;
      batch.push_back(i);
      break;
    }
  }
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_TRUE(IsNear("mixed_batch_loss", stage.LossWithoutGradient(batch),
                     Training().at("mixed_batch_loss").get<double>()));
}

TEST_P(TrainingParityTest, Gradients) {
  const Stage stage(GetParam());
  const std::string& name = stage.name();
  stage.LossOf(BatchOf(stage.expected())).backward();
  EXPECT_EQ(stage.trained().size(), stage.expected().at("trainable"));

  double squares = 0;
  const json& norms = stage.expected().at("grad_norms");
  EXPECT_EQ(norms.size(), stage.trained().size());
  for (const auto& [parameter, tensor] : stage.trained()) {
    ASSERT_TRUE(tensor.grad().defined()) << parameter;
    const double norm = tensor.grad().to(at::kDouble).norm().item<double>();
    squares += norm * norm;
    EXPECT_TRUE(IsNear(name + "/grad_norms/" + parameter, norm, norms.at(parameter).get<double>()));
  }
  EXPECT_TRUE(IsNear(name + "/grad_norm", std::sqrt(squares),
                     stage.expected().at("grad_norm").get<double>()));

  int compared = 0;
  for (const auto& [path, info] : Folder().Tensors("training").tensors()) {
    const auto after = [&](const std::string& prefix) {
      return path.starts_with(name + prefix) ? path.substr(name.size() + prefix.size()) : "";
    };
    const at::Tensor expected = Folder().Expected("training", path);
    if (const std::string whole = after("/grad/"); !whole.empty()) {
      EXPECT_TRUE(IsNear(path, stage.trained().at(whole).grad(), expected));
    } else if (const std::string part = after("/grad_slice/"); !part.empty()) {
      const at::Tensor gradient = stage.trained().at(part).grad().flatten(1);
      EXPECT_TRUE(IsNear(
          path, gradient.narrow(0, 0, expected.size(0)).narrow(1, 0, expected.size(1)), expected));
    } else if (const std::string rows = after("/grad_rows/"); !rows.empty()) {
      const at::Tensor index = Folder().Expected("training", name + "/grad_rows_index");
      EXPECT_TRUE(IsNear(path, stage.trained().at(rows).grad().index_select(0, index), expected));
    } else {
      continue;
    }
    ++compared;
  }
  EXPECT_GE(compared, 4);
}

TEST_P(TrainingParityTest, TenSteps) {
  const Stage stage(GetParam());
  const json& trajectory = stage.expected().at("trajectory");
  const int64_t total = static_cast<int64_t>(trajectory.size());
  const int64_t warmup = WarmupSteps(total, 0.03);
  AdamW optimizer(stage.parameters(), {});
  for (const json& row : trajectory) {
    const int64_t step = row.at("step");
    const std::string path = stage.name() + "/trajectory/" + std::to_string(step) + "/";
    const double rate = stage.expected().at("learning_rate").get<double>() *
                        RateFactor(step, total, warmup, /*final_rate=*/0);
    EXPECT_TRUE(IsNear(path + "lr", rate, row.at("lr").get<double>()));
    optimizer.ZeroGradients();
    const at::Tensor loss = stage.LossOf(BatchOf(row));
    EXPECT_TRUE(IsNear(path + "loss", loss.item<double>(), row.at("loss").get<double>()));
    loss.backward();
    EXPECT_TRUE(IsNear(path + "grad_norm_before_clip", ClipGradients(stage.parameters(), 1.0),
                       row.at("grad_norm_before_clip").get<double>()));
    optimizer.Step(rate);
  }
  EXPECT_TRUE(IsNear(stage.name() + "/trajectory/loss_after",
                     stage.LossWithoutGradient(BatchOf(stage.expected())),
                     stage.expected().at("loss_after").get<double>()));
  std::map<std::string, at::Tensor> weights;
  int compared = 0;
  for (const auto& [path, info] : Folder().Tensors("training").tensors()) {
    const std::string prefix = stage.name() + "/after/";
    if (!path.starts_with(prefix)) continue;
    EXPECT_TRUE(IsNear(path, stage.trained().at(path.substr(prefix.size())),
                       Folder().Expected("training", path)));
    ++compared;
  }
  EXPECT_GE(compared, 4);
}

// PEFT's name of a factor; `name`: ours.
std::string PeftName(const std::string& name) {
  constexpr std::string_view kWeight = ".weight";
  if (name.find(".lora_") == name.npos) return "base_model.model." + name;
  return "base_model.model." + name.substr(0, name.size() - kWeight.size()) + ".default.weight";
}

TEST(TrainingParityTest, LowRankAdapters) {
  const json& expected = Training().at("lora");
  Stage stage("stage2", expected.at("r"), expected.at("alpha"));
  const std::vector<size_t> batch = BatchOf(expected);
  const auto& trained = stage.trained();

  const at::Tensor loss = stage.LossOf(batch);
  EXPECT_TRUE(IsNear("lora/loss", loss.item<double>(), expected.at("loss").get<double>()));
  loss.backward();
  const json& norms = expected.at("grad_norms");
  EXPECT_EQ(norms.size(), trained.size());
  int compared = 0;
  for (const auto& [name, parameter] : trained) {
    const std::string theirs = PeftName(name);
    const at::Tensor gradient = parameter.grad();
    ASSERT_TRUE(gradient.defined()) << name;
    EXPECT_TRUE(IsNear("lora/grad_norms/" + theirs, gradient.norm().item<double>(),
                       norms.at(theirs).get<double>()));
    const std::string path = "lora/grad/" + theirs;
    if (!Folder().Tensors("training").tensors().contains(path)) continue;
    EXPECT_TRUE(IsNear(path, gradient, Folder().Expected("training", path)));
    ++compared;
  }
  EXPECT_EQ(compared, 2 * 7);
  EXPECT_TRUE(IsNear("lora/logits_last8", stage.LogitsBeforeTheEnd(batch.at(0), 8),
                     Folder().Expected("training", "lora/logits_last8")));

  AdamW optimizer(stage.parameters(), {});
  EXPECT_TRUE(IsNear("lora/grad_norm", ClipGradients(stage.parameters(), 1.0),
                     expected.at("grad_norm").get<double>()));
  optimizer.Step(expected.at("learning_rate").get<double>());
  EXPECT_TRUE(IsNear("lora/loss_after_one_step", stage.LossWithoutGradient(batch),
                     expected.at("loss_after_one_step").get<double>()));
}

// The adapter as a checkpoint of its own: merged into its base.
TEST(TrainingParityTest, AdaptersMergedIntoTheirBase) {
  const json& expected = Training().at("lora");
  const Stage stage("stage2", Folder().LoadLanguage("lora"));
  EXPECT_TRUE(IsNear("lora/loss", stage.LossWithoutGradient(BatchOf(expected)),
                     expected.at("loss").get<double>()));
}

}  // namespace
}  // namespace llava
