#include "model/train/language_task.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/eval/text_map.h"
#include "model/llava/generate.h"
#include "model/ops/feature.h"
#include "model/train/optimizer.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

const fs::path kModels = fs::path(SourceDir()) / "deploy/models";

// A recipe of a model that trains in no time.
Recipe TinyRecipe(const std::vector<std::string>& more = {}) {
  Recipe recipe;
  for (const std::string& assignment : std::vector<std::string>{
           "tokenizer=" + (kModels / "emoji/1").string(),
           "tower=" + (kModels / "emoji-tower/1").string(), "model.layers=2", "model.width=32",
           "model.heads=2", "model.ffn=48", "rows=6", "dense_steps=3", "steps=6",
           "evaluation.scenes=8", "evaluation.greedy=1", "learning_rate=3e-3"}) {
    recipe.Set(assignment);
  }
  for (const std::string& assignment : more) recipe.Set(assignment);
  return recipe;
}

std::unique_ptr<TrainingTask> TinyTask(const std::vector<std::string>& more = {}) {
  Recipe recipe = TinyRecipe(more);
  at::set_num_threads(1);  // products this small only lose by more
  const TaskSettings settings = TaskSettings::From(recipe);
  auto task = MakeLanguageTask(recipe, settings);
  recipe.CheckAllRead();
  return task;
}

double LossAt(TrainingTask& task, int64_t step) {
  return task.Forward(step, 0).loss.item<double>();
}

std::vector<std::pair<std::string, at::Tensor>> ParametersOf(TrainingTask& task) {
  std::vector<std::pair<std::string, at::Tensor>> all;
  for (const ParameterGroup& group : task.groups()) {
    all.insert(all.end(), group.parameters.begin(), group.parameters.end());
  }
  return all;
}

TEST(LanguageTaskTest, AStepIsAPureFunctionOfItsNumber) {
  const auto task = TinyTask();
  const double first = LossAt(*task, 0), second = LossAt(*task, 1), natural = LossAt(*task, 4);
  EXPECT_NE(first, second);
  EXPECT_NE(second, natural);
  EXPECT_EQ(LossAt(*task, 0), first);
  EXPECT_EQ(LossAt(*task, 4), natural);
  // Another process, with more threads.
  const auto again = TinyTask({"loader_threads=3"});
  EXPECT_EQ(LossAt(*again, 4), natural);
  EXPECT_EQ(LossAt(*again, 1), second);
  EXPECT_NE(LossAt(*TinyTask({"seed=43"}), 0), first);
}

TEST(LanguageTaskTest, MicroBatchesOfAStepDiffer) {
  const auto task = TinyTask({"accumulation=2"});
  const double first = task->Forward(1, 0).loss.item<double>();
  EXPECT_NE(task->Forward(1, 1).loss.item<double>(), first);
  EXPECT_EQ(task->Forward(1, 0).loss.item<double>(), first);
}

TEST(LanguageTaskTest, GradientsReachEveryParameterInBothPrecisions) {
  for (const char* precision : {"precision=fp32", "precision=bf16"}) {
    const auto task = TinyTask({precision});
    task->Forward(0, 0).loss.backward();
    std::set<std::string> names;
    for (const auto& [name, parameter] : ParametersOf(*task)) {
      EXPECT_TRUE(names.insert(name).second) << name;
      ASSERT_TRUE(parameter.grad().defined()) << name;
      EXPECT_EQ(parameter.scalar_type(), at::kFloat);
      const double size = parameter.grad().abs().sum().item<double>();
      EXPECT_TRUE(std::isfinite(size) && size > 0) << name << " " << precision;
    }
    EXPECT_TRUE(names.contains("text_map.rows"));
    EXPECT_TRUE(names.contains("model.layers.1.mlp.down_proj.weight"));
    EXPECT_FALSE(names.contains("lm_head.weight")) << "tied";
  }
}

TEST(LanguageTaskTest, RefusesADeviceThatIsNotThere) {
  for (const char* device : {"device=quux", "device=cuda:99"}) {
    try {
      TinyTask({device});
      FAIL() << device;
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("\"device\" is"));
      EXPECT_LT(std::string(error.what()).size(), 300u) << error.what();
      if (std::string(device) == "device=cuda:99" && !ops::BuiltWithCuda()) {
        EXPECT_THAT(error.what(), testing::HasSubstr("this build has no CUDA"));
      }
    }
  }
}

TEST(LanguageTaskTest, OnlyMatricesDecay) {
  const auto task = TinyTask();
  for (const ParameterGroup& group : task->groups()) {
    for (const auto& [name, parameter] : group.parameters) {
      EXPECT_EQ(group.weight_decay > 0, parameter.dim() > 1) << name;
    }
  }
}

TEST(LanguageTaskTest, TheMapIsRead) {
  // With the same words but maps that no noise disturbs, the loss is another.
  EXPECT_NE(LossAt(*TinyTask({"map_noise=0"}), 0), LossAt(*TinyTask(), 0));
}

TEST(LanguageTaskTest, AShortRunLowersTheLoss) {
  const auto task = TinyTask({"dense_steps=1000", "map_noise=0", "precision=bf16"});
  std::vector<at::Tensor> parameters;
  for (const auto& [name, parameter] : ParametersOf(*task)) parameters.push_back(parameter);
  AdamW optimizer(parameters, {});
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    const MicroBatch batch = task->Forward(step, 0);
    (step == 0 ? first : last) = batch.loss.item<double>();
    batch.loss.backward();
    optimizer.Step(3e-3);
    optimizer.ZeroGradients();
  }
  EXPECT_NEAR(first, std::log(1000), 0.5) << "begins near knowing nothing";
  EXPECT_LT(last, first - 1.5);
}

TEST(LanguageTaskTest, EvaluatesTheSameWayEveryTime) {
  const auto task = TinyTask();
  const Figures figures = task->Evaluate();
  EXPECT_EQ(figures, task->Evaluate());
  std::set<std::string> names;
  for (const auto& [name, value] : figures) {
    names.insert(name);
    if (name == "loss") continue;
    EXPECT_TRUE(value >= 0 && value <= 1) << name << " " << value;
  }
  for (const char* name :
       {"loss", "right", "right.count", "right.f_side", "greedy", "greedy.what"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

TEST(LanguageTaskTest, CheckTellsWhatIsAsked) {
  const auto check = TinyTask()->Check(nullptr);
  EXPECT_FALSE(check["dense_batches"]["turns"].contains("f_side")) << "follow-ups need dialogues";
  EXPECT_GT(check["dense_batches"]["turns"]["sideof"], 0);
  EXPECT_GT(check["natural_batches"]["turns"]["side"], 0);
  EXPECT_EQ(check["dense_batches"]["rows"], 3 * 6);
  EXPECT_EQ(check["natural_batches"]["rows"], 3 * 7) << "and one of facts";
}

TEST(LanguageTaskTest, PublishesWhatServingOpens) {
  const TempFolder root;
  const auto task = TinyTask({"text_map=" + root.At("map.safetensors")});
  const fs::path folder = task->Publish(root.path(), "base", {{"kind", "language"}});
  EXPECT_EQ(folder, root.path() / "base/1");

  const LanguageCheckpoint checkpoint = OpenLanguage(folder);
  EXPECT_EQ(checkpoint.tower_digest, OpenTower(kModels / "emoji-tower/1").digest);
  EXPECT_EQ(checkpoint.tower_patches, 36);
  EXPECT_EQ(checkpoint.config.features.select_layer, -2);
  EXPECT_EQ(checkpoint.chat_template->name(), "emoji");
  for (const auto& [name, parameter] : ParametersOf(*task)) {
    if (name.starts_with("text_map.")) continue;
    EXPECT_TRUE(at::equal(checkpoint.tensors.Get(name), parameter.detach().to(at::kBFloat16)))
        << name;
  }
  const Llava model(checkpoint, at::kCPU, at::kBFloat16);
  const at::Tensor features = at::zeros({36, 160});
  const std::vector<int32_t> prompt = {1, kImageToken, 4};
  const GenerateResult result = Generate(model, prompt, {&features, 1}, {}, {.max_new_tokens = 3});
  EXPECT_GE(result.ids.size(), 1);

  const TextMap map(*checkpoint.tokenizer, root.At("map.safetensors"));
  EXPECT_EQ(map.parameters()[0].second.sizes(), (at::IntArrayRef{6, 32}));
}

TEST(LanguageTaskTest, NothingIsPublishedWithoutItsMap) {
  const TempFolder root;
  const auto task = TinyTask({"text_map=" + root.At("nowhere/map.safetensors")});
  EXPECT_THROW(task->Publish(root.path(), "base", {}), std::runtime_error);
  EXPECT_FALSE(fs::exists(root.At("base/1"))) << "a repeated command would end with it";
}

TEST(LanguageTaskTest, GoesOnFromAPublishedModel) {
  const TempFolder root;
  const std::string map = root.At("map.safetensors");
  const auto first = TinyTask({"text_map=" + map});
  first->Publish(root.path(), "base", {});
  const auto begin = [&](const std::vector<std::string>& more) {
    Recipe recipe;
    for (const std::string& assignment :
         {"start=" + root.At("base"), "start_text_map=" + map,
          "tower=" + (kModels / "emoji-tower/1").string(), std::string("rows=6"),
          std::string("dense_steps=3"), std::string("steps=6"),
          std::string("evaluation.scenes=8")}) {
      recipe.Set(assignment);
    }
    for (const std::string& assignment : more) recipe.Set(assignment);
    auto task = MakeLanguageTask(recipe, TaskSettings::From(recipe));
    recipe.CheckAllRead();
    return task;
  };
  const auto second = begin({});
  // The published weights are rounded to bfloat16.
  EXPECT_NEAR(LossAt(*second, 2), LossAt(*first, 2), 1e-2);
  std::map<std::string, at::Tensor> old;
  for (const auto& [name, parameter] : ParametersOf(*first)) old[name] = parameter;
  for (const auto& [name, parameter] : ParametersOf(*second)) {
    ASSERT_TRUE(old.contains(name)) << name;
    EXPECT_TRUE(at::allclose(parameter, old.at(name), 1e-2, 1e-3)) << name;
    EXPECT_TRUE(parameter.requires_grad()) << name;
  }
  EXPECT_THROW(begin({"start_text_map="}), std::invalid_argument);
  EXPECT_THROW(begin({"model.layers=3"}), std::invalid_argument) << "the start has its own shape";
  EXPECT_THROW(begin({"start_text_map=" + (kModels / "../training/text_map.safetensors").string()}),
               std::invalid_argument)
      << "of another width";
}

TEST(LanguageTaskTest, RefusesSettingsThatDoNotFit) {
  EXPECT_THROW(TinyTask({"model.heads=3"}), std::invalid_argument);
  EXPECT_THROW(TinyTask({"categories=50"}), std::invalid_argument);
  EXPECT_THROW(TinyTask({"tower="}), std::invalid_argument);
  EXPECT_THROW(TinyTask({"tokenizer=/nowhere"}), std::runtime_error);
  try {
    TinyTask({"categories=96"});  // the tokenizer knows the words of 48
    FAIL() << "categories without words were taken";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("llava-train tokenizer"));
  }
}

}  // namespace
}  // namespace llava
