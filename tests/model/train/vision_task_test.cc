#include "model/train/vision_task.h"

#include <cmath>
#include <filesystem>
#include <set>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/nn/clip.h"
#include "model/train/optimizer.h"
#include "model/train/picture_lessons.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<TrainingTask> TinyTask(const std::vector<std::string>& more = {}) {
  Recipe recipe;
  for (const std::string& assignment : std::vector<std::string>{
           "tokenizer=" + SourceDir() + "/deploy/models/emoji/1", "tower.width=32",
           "tower.layers=2", "tower.heads=2", "pictures=8", "evaluation.scenes=202"}) {
    recipe.Set(assignment);
  }
  for (const std::string& assignment : more) recipe.Set(assignment);
  at::set_num_threads(1);  // products this small only lose by more
  const TaskSettings settings = TaskSettings::From(recipe);
  auto task = MakeVisionTask(recipe, settings);
  recipe.CheckAllRead();
  return task;
}

double LossAt(TrainingTask& task, int64_t step) {
  return task.Forward(step, 0).loss.item<double>();
}

TEST(VisionTaskTest, AStepIsAPureFunctionOfItsNumber) {
  const auto task = TinyTask();
  const double first = LossAt(*task, 0), second = LossAt(*task, 1);
  EXPECT_NE(first, second);
  EXPECT_EQ(LossAt(*task, 0), first);
  const auto again = TinyTask({"loader_threads=3"});
  EXPECT_EQ(LossAt(*again, 1), second);
  EXPECT_EQ(LossAt(*again, 0), first);
  EXPECT_NE(LossAt(*TinyTask({"seed=43"}), 0), first);
}

TEST(VisionTaskTest, GradientsReachEveryParameterInBothPrecisions) {
  for (const char* precision : {"precision=fp32", "precision=bf16"}) {
    const auto task = TinyTask({precision});
    task->Forward(0, 0).loss.backward();
    std::set<std::string> names;
    for (const ParameterGroup& group : task->groups()) {
      for (const auto& [name, parameter] : group.parameters) {
        EXPECT_TRUE(names.insert(name).second) << name;
        EXPECT_EQ(group.weight_decay > 0, parameter.dim() > 1) << name;
        ASSERT_TRUE(parameter.grad().defined()) << name;
        const double size = parameter.grad().abs().sum().item<double>();
        EXPECT_TRUE(std::isfinite(size)) << name;
        // Softmax does not care what is added to all keys.
        if (name.ends_with("k_proj.bias")) continue;
        EXPECT_GT(size, 0) << name << " " << precision;
      }
    }
    for (const char* name :
         {"vision_model.encoder.layers.1.self_attn.v_proj.weight",
          "vision_model.post_layernorm.bias", "text.word_embedding.weight", "log_scales"}) {
      EXPECT_TRUE(names.contains(name)) << name;
    }
  }
}

TEST(VisionTaskTest, AShortRunLowersTheLoss) {
  const auto task = TinyTask({"precision=bf16"});
  std::vector<at::Tensor> parameters;
  for (const ParameterGroup& group : task->groups()) {
    for (const auto& [name, parameter] : group.parameters) parameters.push_back(parameter);
  }
  AdamW optimizer(parameters, {});
  double first = 0, last = 0;
  for (int step = 0; step < 60; ++step) {
    const MicroBatch batch = task->Forward(step, 0);
    EXPECT_EQ(batch.samples, 8);
    (step == 0 ? first : last) = batch.loss.item<double>();
    batch.loss.backward();
    optimizer.Step(2e-3);
    optimizer.ZeroGradients();
  }
  EXPECT_LT(last, first - 3);
}

TEST(VisionTaskTest, EvaluatesTheSameWayEveryTime) {
  const auto task = TinyTask();
  const Figures figures = task->Evaluate();
  EXPECT_EQ(figures, task->Evaluate());
  std::set<std::string> names;
  for (const auto& [name, value] : figures) {
    names.insert(name);
    EXPECT_TRUE(value >= 0 && value <= 1) << name << " " << value;
  }
  EXPECT_THAT(names, testing::UnorderedElementsAre("background", "caption_of_200",
                                                   "centre_category", "centre_category_and_size",
                                                   "place", "scene_exact", "scene_exact_pairs"));
}

TEST(VisionTaskTest, PublishesATowerThatOpens) {
  const TempFolder root;
  const auto task = TinyTask();
  const fs::path folder = task->Publish(root.path(), "tower", {{"kind", "vision"}});
  const TowerCheckpoint checkpoint = OpenTower(folder);  // checks all digests
  EXPECT_EQ(checkpoint.config.num_layers, 2);
  for (const ParameterGroup& group : task->groups()) {
    for (const auto& [name, parameter] : group.parameters) {
      if (!name.starts_with("vision_model.")) continue;
      EXPECT_TRUE(at::equal(checkpoint.tensors.Get(name), parameter.detach().to(at::kBFloat16)))
          << name;
    }
  }
  const ClipTower tower(checkpoint.config, checkpoint.tensors, at::kCPU, at::kBFloat16);
  EXPECT_EQ(tower.Features(at::zeros({1, 3, 96, 96}), {}).sizes(), (at::IntArrayRef{1, 36, 32}));
}

TEST(VisionTaskTest, RefusesSettingsThatDoNotFit) {
  EXPECT_THROW(TinyTask({"tower.heads=5"}), std::invalid_argument);
  EXPECT_THROW(TinyTask({"select_layer=3"}), std::invalid_argument);
  EXPECT_THROW(TinyTask({"categories=50"}), std::invalid_argument);
  EXPECT_THROW(TinyTask({"tokenizer="}), std::invalid_argument);
}

TEST(RegionPhrasesTest, EveryCellHasItsPhrase) {
  const RegionPhrases phrases(kSmallCategorySet);
  const std::vector<std::string> all = phrases.All();
  EXPECT_EQ(all.size(), 150);
  const std::string& lion = Categories()[0].name;
  using Cell = SceneCell;
  using Kind = RegionPhrases::Kind;
  const auto of = [&](const Cell& cell) { return phrases.IndexOf(cell); };
  EXPECT_EQ(all[of({Cell::Kind::kCentre, 0, false})], "a small " + lion);
  EXPECT_EQ(all[of({Cell::Kind::kCentre, 0, true})], "a big " + lion);
  EXPECT_EQ(all[of({Cell::Kind::kPart, 0, false})], "part of a " + lion);
  EXPECT_EQ(all[of({Cell::Kind::kBackground, 5, false})], "black background");
  EXPECT_EQ(phrases.KindOf(47), Kind::kSmall);
  EXPECT_EQ(phrases.KindOf(48), Kind::kBig);
  EXPECT_EQ(phrases.KindOf(143), Kind::kPart);
  EXPECT_EQ(phrases.KindOf(149), Kind::kBackground);
  EXPECT_EQ(phrases.SubjectOf(149), 5);
  EXPECT_EQ(phrases.SubjectOf(50), 2);
}

}  // namespace
}  // namespace llava
