// Training on several devices. Here they are all the CPU: what is shared and what is added up is
// the same, copies between devices are not made.

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/train/instruction_task.h"
#include "model/train/language_task.h"
#include "model/train/trainer.h"
#include "tests/model/train/instruction_world.h"

namespace llava {
namespace {

using Stage = InstructionStage;
using testing::HasSubstr;
using Settings = std::vector<std::string>;

// What a run has done.
struct Outcome {
  std::vector<StepReport> steps;
  std::map<std::string, at::Tensor> parameters;
};

class DevicesTest : public testing::Test {
 protected:
  DevicesTest() { at::set_num_threads(1); }

  // Eight steps of four micro-batches, or those that `folder` still lacks of them.
  Outcome Run(Stage stage, const std::string& folder, Settings settings) {
    for (const char* setting :
         {"steps=8", "batch_size=2", "accumulation=4", "learning_rate=1e-2", "warmup_ratio=0",
          "save_every=4", "keep_states=9", "evaluate_every=0"}) {
      settings.insert(settings.begin(), setting);
    }
    Recipe recipe;
    recipe.Set("model=" + world_.model().string());
    recipe.Set("data=" + (world_.folder() / "data.json").string());
    recipe.Set("images=" + (world_.folder() / "images").string());
    for (const std::string& setting : settings) recipe.Set(setting);
    const TrainerSettings trainer = TrainerSettings::From(recipe);
    const TaskSettings task_settings = TaskSettings::From(recipe);
    const auto task = MakeInstructionTask(stage, recipe, task_settings);
    recipe.CheckAllRead();
    Outcome outcome;
    std::FILE* sink = std::fopen("/dev/null", "w");
    Train(*task, recipe, trainer,
          {.run_folder = world_.folder() / folder,
           .progress = sink,
           .on_step = [&](const StepReport& report) { outcome.steps.push_back(report); }});
    std::fclose(sink);
    for (const ParameterGroup& group : task->groups()) {
      for (const auto& [name, parameter] : group.parameters) {
        outcome.parameters[name] = parameter.detach().clone();
      }
    }
    return outcome;
  }

  static void ExpectSame(const Outcome& found, const Outcome& expected, double tolerance) {
    ASSERT_EQ(found.steps.size(), expected.steps.size());
    for (size_t i = 0; i < found.steps.size(); ++i) {
      EXPECT_NEAR(found.steps[i].loss, expected.steps[i].loss, tolerance) << "step " << i;
      EXPECT_NEAR(found.steps[i].gradient_norm, expected.steps[i].gradient_norm,
                  tolerance * expected.steps[i].gradient_norm);
      EXPECT_EQ(found.steps[i].samples, expected.steps[i].samples);
      EXPECT_EQ(found.steps[i].trained_tokens, expected.steps[i].trained_tokens);
    }
  }

  InstructionWorld world_;
};

TEST_F(DevicesTest, SeveralLearnWhatOneLearns) {
  for (const Stage stage : {Stage::kAlign, Stage::kFinetune}) {
    const std::string name = stage == Stage::kAlign ? "align" : "finetune";
    const Outcome one = Run(stage, name + "1", {"device=cpu"});
    ASSERT_LT(one.steps.back().loss, one.steps.front().loss - 0.05)
        << "there is something to learn";
    for (const std::string devices : {"cpu,cpu", "cpu,cpu,cpu", "cpu,cpu,cpu,cpu"}) {
      SCOPED_TRACE(name + " on " + devices);
      // Rounding of sums in another order, magnified by AdamW's division.
      ExpectSame(Run(stage, name + devices, {"device=" + devices}), one, 2e-3);
    }
  }
}

TEST_F(DevicesTest, InSixteenBitsWithAdaptersAndRecomputedLayersToo) {
  const Settings settings = {"precision=bf16", "lora.rank=4", "lora.dropout=0.3",
                             "gradient_checkpointing=true", "image_order=random"};
  const auto on = [&](const std::string& devices) {
    Settings all = settings;
    all.push_back("device=" + devices);
    return Run(Stage::kFinetune, devices, all);
  };
  const Outcome one = on("cpu");
  ASSERT_LT(one.steps.back().loss, one.steps.front().loss - 0.05) << "there is something to learn";
  ExpectSame(on("cpu,cpu"), one, 2e-2);
  ExpectSame(on("cpu,cpu,cpu"), one, 2e-2);
}

TEST_F(DevicesTest, OneOnItsOwnRepeatsItsBits) {
  const Outcome plain = Run(Stage::kFinetune, "plain", {"precision=bf16"});
  const Outcome offloaded = Run(Stage::kFinetune, "offload", {"precision=bf16", "offload=true"});
  ExpectSame(offloaded, plain, 0);
  for (const auto& [name, parameter] : plain.parameters) {
    EXPECT_TRUE(at::equal(parameter, offloaded.parameters.at(name))) << name;
  }
}

TEST_F(DevicesTest, ARunGoesOnOnOtherDevices) {
  const Outcome whole = Run(Stage::kFinetune, "run", {"device=cpu,cpu", "loader_threads=3"});
  std::filesystem::remove(world_.folder() / "run/state-00000008.safetensors");
  const Outcome rest = Run(Stage::kFinetune, "run", {"device=cpu", "offload=true"});
  Outcome expected = whole;
  expected.steps.erase(expected.steps.begin(), expected.steps.begin() + 4);
  ExpectSame(rest, expected, 2e-3);
}

TEST(TaskSettingsTest, Float32IsWholeWhereItIsAskedFor) {
  for (const bool whole : {false, true}) {
    Recipe recipe;
    recipe.Set(whole ? "precision=fp32" : "precision=bf16");
    TaskSettings::From(recipe);
    EXPECT_EQ(at::globalContext().allowTF32CuBLAS(), !whole);
  }
}

TEST_F(DevicesTest, SaysWhichDevicesItCannotUse) {
  const auto refusal = [&](const Settings& settings) {
    return world_.Refusal(Stage::kFinetune, settings);
  };
  EXPECT_THAT(refusal({"device=cpu,cpu", "accumulation=1"}),
              HasSubstr("\"accumulation\" is 1, but \"device\" names 2"));
  EXPECT_THAT(refusal({"device="}), HasSubstr("\"device\" is empty"));
  EXPECT_THAT(refusal({"device=cpu,"}), testing::IsEmpty());
  EXPECT_THAT(refusal({"device=cpu,,cpu", "accumulation=2"}), HasSubstr("\"cpu,,cpu\""));
  EXPECT_THAT(refusal({"device=gpu:all"}), HasSubstr("\"gpu:all\""));
  EXPECT_THAT(refusal({"device=cpu,meta", "accumulation=2"}), HasSubstr("devices of one kind"));

  Recipe recipe;
  recipe.Set("device=cpu,cpu");
  const TaskSettings two = TaskSettings::From(recipe);
  EXPECT_THAT([&] { two.RequireOneDevice("pretrain-lm"); },
              testing::ThrowsMessage<std::invalid_argument>(HasSubstr("trains on one")));
  TaskSettings away;
  away.RequireOneDevice("pretrain-lm");
  away.offload = true;
  EXPECT_THAT([&] { away.RequireOneDevice("pretrain-lm"); },
              testing::ThrowsMessage<std::invalid_argument>(HasSubstr("\"offload\"")));
}

}  // namespace
}  // namespace llava
