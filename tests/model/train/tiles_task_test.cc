// The two stages on pictures of any shape, in tiles (LLaVA-1.6).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "model/checkpoint/memory_tensors.h"
#include "model/llava/self_test.h"
#include "model/train/instruction_model.h"
#include "model/train/instruction_task.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/train/instruction_world.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

using Stage = InstructionStage;
using Settings = std::vector<std::string>;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kNewline = "model.image_newline";

class TilesTaskTest : public testing::Test {
 protected:
  TilesTaskTest() {
    Picture("images/0.png", "tall_37x200.png");
    Picture("images/1.png", "small_upscale.png");
  }
  void Picture(const char* name, const char* fixture) {
    world_.Write(name, ReadBytes(FixturesDir() / "images" / fixture));
  }
  std::unique_ptr<TrainingTask> Make(Stage stage, Settings settings) const {
    settings.insert(settings.begin(), "model=" + next_.string());
    return world_.Make(stage, settings);
  }
  static std::vector<std::string> GroupNames(TrainingTask& task) {
    std::vector<std::string> names;
    for (const ParameterGroup& group : task.groups()) names.push_back(group.name);
    return names;
  }
  static double Mean(const std::vector<double>& losses, size_t begin) {
    double sum = 0;
    for (size_t i = begin; i < begin + 5; ++i) sum += losses[i];
    return sum / 5;
  }

  InstructionWorld world_;
  const std::filesystem::path next_ = WriteTinyNext(world_.folder() / "next");
};

TEST_F(TilesTaskTest, BothLayoutsAreTrainedAndPublished) {
  for (const auto& from : {next_, WriteOriginalNext(world_.folder() / "original")}) {
    SCOPED_TRACE(from);
    const auto task = Make(Stage::kFinetune, {"batch_size=8", "image_order=front",
                                              "publish.dtype=fp32", "model=" + from.string()});
    EXPECT_THAT(GroupNames(*task), ElementsAre("projector", "projector biases", "image newline",
                                               "decoder", "decoder norms"));
    const auto losses = TrainSteps(*task, 30, 3e-3);
    EXPECT_LT(Mean(losses, 25), 0.5 * Mean(losses, 0)) << "eight records can be learnt by heart";
    const auto version = task->Publish(world_.folder() / "repository", "tiles", {});
    const LanguageCheckpoint before = OpenLanguage(from), after = OpenLanguage(version);
    EXPECT_EQ(after.config.features.grid, before.config.features.grid);
    EXPECT_EQ(after.config.features.tile_size, 56);
    EXPECT_GT(MaxDifference(after.tensors.Get(kNewline), before.tensors.Get(kNewline)), 1e-3);
    ASSERT_TRUE(after.self_test);
    EXPECT_LT(CheckSelfTest(Llava(after, at::kCPU, at::kFloat), *after.self_test), 1e-3);
  }
}

TEST_F(TilesTaskTest, EachStageTrainsItsPartAndTheNewline) {
  const auto align = Make(Stage::kAlign, {"batch_size=4", "projector.learning_rate=1e-3"});
  EXPECT_THAT(GroupNames(*align), ElementsAre("projector", "projector biases", "image newline"));
  const auto lora = Make(Stage::kFinetune, {"batch_size=8", "lora.rank=4", "weight_decay=0.1"});
  EXPECT_THAT(GroupNames(*lora),
              ElementsAre("projector", "projector biases", "image newline", "adapters"));
  EXPECT_EQ(lora->groups()[2].weight_decay, 0);
  EXPECT_DOUBLE_EQ(lora->groups()[2].learning_rate, 2e-5);
  for (TrainingTask* task : {align.get(), lora.get()}) {
    task->Forward(0, 0).loss.backward();
    EXPECT_GT(Gradients(*task).at(kNewline).abs().sum().item<double>(), 0);
  }
  const auto losses = TrainSteps(*lora, 30, 1e-2);
  EXPECT_LT(Mean(losses, 25), 0.9 * Mean(losses, 0));
  // Text alone moves neither projector nor newline.
  world_.Write("data.json", ArrayJson({world_.records()[4]}));
  const auto text = Make(Stage::kAlign, {"batch_size=1"});
  text->Forward(0, 0).loss.backward();
  EXPECT_EQ(Gradients(*text).at(kNewline).abs().sum().item<double>(), 0);
}

TEST_F(TilesTaskTest, PackingAndCheckpointingChangeNoGradient) {
  const Settings separate = {"order=as_data", "image_order=front", "batch_size=8"};
  const Settings packed = {"order=as_data", "image_order=front", "batch_size=5", "packing=picture",
                           "gradient_checkpointing=true"};
  const auto alone = Make(Stage::kFinetune, separate), together = Make(Stage::kFinetune, packed);
  const MicroBatch expected = alone->Forward(0, 0), found = together->Forward(0, 0);
  EXPECT_EQ(found.samples, 8);
  EXPECT_LT(found.tokens, expected.tokens) << "shared pictures are computed once";
  EXPECT_NEAR(found.loss.item<double>(), expected.loss.item<double>(), 1e-5);
  expected.loss.backward();
  found.loss.backward();
  const auto theirs = Gradients(*alone), ours = Gradients(*together);
  for (const auto& [name, gradient] : theirs) {
    EXPECT_LT(MaxDifference(gradient, ours.at(name)), 1e-5) << name;
  }
}

TEST_F(TilesTaskTest, TheNewlineStaysIn32Bits) {
  const Settings settings = {"batch_size=8", "image_order=front"};
  auto mixed = settings;
  mixed.push_back("precision=bf16");
  const auto exact = Make(Stage::kFinetune, settings), rounded = Make(Stage::kFinetune, mixed);
  const MicroBatch found = rounded->Forward(0, 0);
  EXPECT_NEAR(found.loss.item<double>(), exact->Forward(0, 0).loss.item<double>(), 0.1);
  found.loss.backward();
  EXPECT_EQ(Gradients(*rounded).at(kNewline).scalar_type(), at::kFloat);
}

TEST_F(TilesTaskTest, CachedFeaturesChangeNothing) {
  const auto losses = [&](Settings settings) {
    settings.insert(settings.end(), {"batch_size=4", "epochs=3"});
    const auto task = Make(Stage::kAlign, settings);
    return TrainSteps(*task, task->total_steps(), 1e-3);
  };
  const auto plain = losses({"feature_cache.memory_mib=0"});
  EXPECT_EQ(losses({"feature_cache.memory_mib=64", "loader_threads=3"}), plain);
  const std::string file = "feature_cache.file=" + (world_.folder() / "features").string();
  EXPECT_EQ(losses({file, "feature_cache.memory_mib=0"}), plain);
  EXPECT_EQ(losses({file}), plain);
}

TEST_F(TilesTaskTest, TokensAreCountedByShape) {
  const auto task = Make(Stage::kFinetune, {"batch_size=1", "order=as_data", "epochs=1"});
  // As transformers counts them: tall, small and square (next_golden.py); three, one and two
  // records.
  const auto data = task->Check(nullptr)["data"];
  EXPECT_EQ(data["image_tokens"], 3 * 52 + 46 + 2 * 88);
  int64_t tokens = 0, heaviest = 0, most = 0;
  for (int64_t step = 0; step < 8; ++step) {
    const int64_t of_step = task->Forward(step, 0).tokens;
    tokens += of_step;
    if (of_step > most) heaviest = step;
    most = std::max(most, of_step);
  }
  EXPECT_EQ(data["tokens"], tokens);
  EXPECT_EQ(task->HeaviestStep(), heaviest);
  EXPECT_EQ(data["longest_sample_tokens"], most);
}

TEST_F(TilesTaskTest, APictureFitsWholeOrNotAtAll) {
  EXPECT_THAT(
      world_.Refusal(Stage::kFinetune, {"model=" + next_.string(), "max_tokens=80"}),
      AllOf(HasSubstr("at most 80 fit (max_tokens)"), HasSubstr("88 of them stand for pictures")));
  const Settings settings = {"batch_size=1", "order=as_data", "image_order=front"};
  const auto whole = Make(Stage::kFinetune, settings);
  const int64_t longest = whole->Check(nullptr)["data"]["longest_sample_tokens"];
  for (const int64_t most : {longest - 1, longest - 20}) {
    auto shorter = settings;
    shorter.insert(shorter.end(), {"skip_bad=true", "max_tokens=" + std::to_string(most)});
    const auto task = Make(Stage::kFinetune, shorter);
    const auto data = task->Check(nullptr)["data"];
    EXPECT_GT(data["dropped_turns"].get<int64_t>() + 8 - data["usable"].get<int64_t>(), 0);
    for (int64_t step = 0; step < data["usable"].get<int64_t>(); ++step) {
      EXPECT_LE(task->Forward(step, 0).tokens, most);
    }
  }
}

TEST_F(TilesTaskTest, PicturesThatCannotBeReadAreFoundAtOnce) {
  world_.Write("images/1.png", "no picture at all");
  EXPECT_THAT(world_.Refusal(Stage::kFinetune, {"model=" + next_.string()}),
              AllOf(HasSubstr("data.json record 3"), HasSubstr("images/1.png")));
  EXPECT_GT(Make(Stage::kFinetune, {"skip_bad=true"})->Forward(0, 0).samples, 0);
}

// One record with pictures of several numbers of tiles is the example that is published.
TEST_F(TilesTaskTest, PublishesAnExampleWithPicturesOfSeveralShapes) {
  Picture("images/2.png", "plain.png");
  world_.Write("data.json",
               R"([{"id": "x", "image": ["0.png", "2.png"], "conversations": [
                   {"from": "human", "value": "<image> <image>\nWhich is red?"},
                   {"from": "gpt", "value": "The first."}]}])");
  const auto task =
      Make(Stage::kFinetune, {"batch_size=1", "image_order=as_data", "grid=56x56,56x168"});
  const LanguageCheckpoint published =
      OpenLanguage(task->Publish(world_.folder() / "repository", "two", {}));
  EXPECT_EQ(published.config.features.grid, (std::vector<Resolution>{{56, 56}, {56, 168}}));
  EXPECT_LT(CheckSelfTest(Llava(published, at::kCPU, at::kFloat), *published.self_test), 2e-3);
}

TEST_F(TilesTaskTest, AModelOfFixedPicturesBecomesOneOfTiles) {
  const auto open = [&](Stage stage, Settings settings, uint64_t seed = 1) {
    Recipe recipe;
    recipe.Set("model=" + world_.model().string());
    for (const std::string& setting : settings) recipe.Set(setting);
    return OpenInstructionModel(InstructionSettings::From(recipe, stage), seed).language;
  };
  const LanguageCheckpoint tiles = open(Stage::kFinetune, {"image_mode=anyres"});
  EXPECT_EQ(tiles.config.features.grid, PublishedGrid(56));
  EXPECT_EQ(tiles.config.features.tile_size, 56);
  const at::Tensor newline = tiles.tensors.Get(kNewline);
  EXPECT_NEAR(newline.std().item<double>(), 1 / std::sqrt(newline.numel()), 0.02);
  EXPECT_TRUE(at::equal(
      open(Stage::kAlign, {"image_mode=anyres", "grid=112x56"}).tensors.Get(kNewline), newline));
  EXPECT_FALSE(
      at::equal(open(Stage::kAlign, {"image_mode=anyres"}, 2).tensors.Get(kNewline), newline));

  // The published course: stage 1 on fixed pictures, stage 2 on tiles; and back.
  const auto root = world_.folder() / "repository";
  const std::string tower = "tower=" + world_.model().string();
  const auto align = world_.Make(Stage::kAlign, {"batch_size=4"});
  TrainSteps(*align, 2, 1e-3);
  const std::string aligned = "model=" + align->Publish(root, "aligned", {}).string();
  const auto finetune =
      world_.Make(Stage::kFinetune, {aligned, tower, "batch_size=8", "image_mode=anyres"});
  const auto losses = TrainSteps(*finetune, 30, 3e-3);
  EXPECT_LT(Mean(losses, 25), 0.5 * Mean(losses, 0));
  const std::string tuned = "model=" + finetune->Publish(root, "tuned", {}).string();
  EXPECT_EQ(open(Stage::kFinetune, {tuned, tower}).config.features.grid, PublishedGrid(56));
  const LanguageCheckpoint back = open(Stage::kFinetune, {tuned, tower, "image_mode=pad"});
  EXPECT_TRUE(back.config.features.grid.empty());
  EXPECT_FALSE(back.tensors.tensors().contains(kNewline));
}

TEST_F(TilesTaskTest, AnotherTowerHasOtherTiles) {
  TowerCheckpoint other;
  other.config = TinyTowerConfig();
  other.config.preprocess.image_size = other.config.image_size;
  other.tensors = MemoryTensors(RandomTower(other.config));
  other.digest = HashBytes("another tower");
  const std::string tower =
      "tower=" + PublishTower(other, world_.folder() / "repository", "eye").string();
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {"model=" + next_.string(), tower}),
              AllOf(HasSubstr("come in tiles of 56 pixels, the tower sees 12"),
                    HasSubstr("setting \"grid\" names canvases of this tower's tiles")));
  const auto task = Make(Stage::kAlign, {tower, "grid=12x24,24x24", "batch_size=4"});
  EXPECT_GT(task->Forward(0, 0).loss.item<double>(), 0);
}

TEST_F(TilesTaskTest, RefusesCanvasesThatDoNotFit) {
  const auto refused = [&](const Settings& settings, const char* says) {
    EXPECT_THAT(world_.Refusal(Stage::kFinetune, settings), HasSubstr(says));
  };
  refused({"grid=56x112"}, "set image_mode=anyres too");
  refused({"image_mode=anyres", "grid=56x"}, "expected width x height, as 336x672");
  refused({"image_mode=anyres", "grid=56x112,x"}, "has the canvas \"x\"");
  refused({"image_mode=anyres", "grid=56x112x3"}, "expected width x height");
  refused({"image_mode=anyres", "grid=60x112"}, "is not made of 1 to 36 tiles of 56 pixels");
  refused({"image_mode=tiles"}, "anyres");
}

}  // namespace
}  // namespace llava
