// Training of LLaVA-1.6 against transformers: next_training.safetensors (next_training_golden.py).

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/tensor_file.h"
#include "model/image/decode.h"
#include "model/llava/llava.h"
#include "model/llava/tower_features.h"
#include "model/nn/clip.h"
#include "model/train/optimizer.h"
#include "tests/parity/fixture_folder.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

constexpr double kRate = 1e-3;
// In the order of "loss_alone".
const std::vector<std::pair<std::string, std::vector<std::string>>> kSamples = {
    {"tall", {"tall_37x200.png"}}, {"two", {"plain.png", "gray.png"}}, {"text", {}}};

class NextTrainingTest : public ::testing::Test {
 protected:
  struct Sample {
    std::vector<int32_t> ids;
    std::vector<int64_t> labels;
    std::vector<at::Tensor> features;
    std::vector<Resolution> sizes;
  };

  NextTrainingTest()
      : path_(WriteTinyNext(folder_.path() / "next")),
        model_(OpenLanguage(path_), at::kCPU, at::kFloat) {
    model_.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
      parameter.requires_grad_();
      trained_.emplace(name, parameter);
    });
    const TowerCheckpoint checkpoint = OpenTower(path_);
    const ClipTower tower(checkpoint.config, checkpoint.tensors, at::kCPU, at::kFloat);
    for (const auto& [name, pictures] : kSamples) samples_.push_back(Read(tower, name, pictures));
  }

  double LossWithoutGradient(const std::vector<size_t>& batch) const {
    const at::NoGradGuard guard;
    return LossOf(batch).item<double>();
  }
  at::Tensor LossOf(const std::vector<size_t>& batch) const {
    std::vector<LabelledSample> views;
    for (const size_t i : batch) {
      const Sample& s = samples_.at(i);
      views.push_back(
          {.input_ids = s.ids, .labels = s.labels, .features = s.features, .sizes = s.sizes});
    }
    return Predict(model_, views).Loss();
  }
  // What was kept of a parameter there.
  static at::Tensor CornerOf(const at::Tensor& ours, const at::Tensor& theirs) {
    if (theirs.dim() < 2) return ours;
    return ours.narrow(0, 0, theirs.size(0)).narrow(1, 0, theirs.size(1));
  }
  // Under `group` "grad" or "after".
  void ExpectNear(const std::string& group,
                  const std::function<at::Tensor(const at::Tensor&)>& of) const {
    int compared = 0;
    for (const auto& [name, parameter] : trained_) {
      const std::string path = group + "/" + name;
      if (!golden_->tensors().contains(path)) continue;
      const at::Tensor expected = golden_->Get(path);
      EXPECT_TRUE(IsNear(path, CornerOf(of(parameter), expected), expected));
      ++compared;
    }
    EXPECT_GE(compared, 15);
  }
  double Golden(const std::string& name) const { return golden_->Get(name).item<double>(); }

  const std::shared_ptr<const TensorFile> golden_ =
      TensorFile::Open(SourceDir() + "/tests/parity/next_training.safetensors");
  const TempFolder folder_;
  const std::filesystem::path path_;
  Llava model_;
  std::map<std::string, at::Tensor> trained_;
  std::vector<Sample> samples_;

 private:
  Sample Read(const ClipTower& tower, const std::string& name,
              const std::vector<std::string>& pictures) const {
    const at::NoGradGuard guard;
    const at::Tensor ids = golden_->Get(name + "/input_ids").to(at::kInt).contiguous();
    const at::Tensor labels = golden_->Get(name + "/labels").contiguous();
    Sample sample;
    sample.ids.assign(ids.const_data_ptr<int32_t>(), ids.const_data_ptr<int32_t>() + ids.numel());
    sample.labels.assign(labels.const_data_ptr<int64_t>(),
                         labels.const_data_ptr<int64_t>() + labels.numel());
    for (const std::string& picture : pictures) {
      const std::string bytes = ReadBytes(OwnFixturesDir() / "images" / picture);
      const PictureFeatures made = TowerFeatures(
          tower, model_.config().features,
          DecodeImage({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
      sample.features.push_back(made.rows);
      sample.sizes.push_back(made.size);
    }
    return sample;
  }
};

TEST_F(NextTrainingTest, LossGradientsAndAStep) {
  for (size_t i = 0; i < samples_.size(); ++i) {
    EXPECT_TRUE(IsNear("loss_alone", LossWithoutGradient({i}),
                       golden_->Get("loss_alone")[static_cast<int64_t>(i)].item<double>()));
  }
  const std::vector<size_t> batch = {0, 1, 2};
  const at::Tensor loss = LossOf(batch);
  EXPECT_TRUE(IsNear("loss", loss.item<double>(), Golden("loss")));
  loss.backward();
  int norms = 0;
  std::vector<at::Tensor> parameters;
  for (const auto& [name, parameter] : trained_) {
    ASSERT_TRUE(parameter.grad().defined()) << name;
    EXPECT_TRUE(IsNear("grad_norms/" + name, parameter.grad().norm().item<double>(),
                       Golden("grad_norms/" + name)));
    parameters.push_back(parameter);
    ++norms;
  }
  for (const auto& [name, info] : golden_->tensors()) norms -= name.starts_with("grad_norms/");
  EXPECT_EQ(norms, 0) << "parameters there, but not here";
  EXPECT_GT(Golden("grad_norms/model.image_newline"), 0.01);
  ExpectNear("grad", [](const at::Tensor& parameter) { return parameter.grad(); });

  AdamW optimizer(parameters, {});
  EXPECT_TRUE(IsNear("grad_norm", ClipGradients(parameters, 1.0), Golden("grad_norm")));
  optimizer.Step(kRate);
  ExpectNear("after", [](const at::Tensor& parameter) { return parameter.detach(); });
  EXPECT_TRUE(IsNear("loss_after", LossWithoutGradient(batch), Golden("loss_after")));
}

}  // namespace
}  // namespace llava
