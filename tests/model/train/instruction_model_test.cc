#include "model/train/instruction_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include <ATen/ATen.h>

#include "model/config/picture_shape.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/train/instruction_world.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

using Stage = InstructionStage;
using Settings = std::vector<std::string>;
using testing::HasSubstr;

class InstructionModelTest : public testing::Test {
 protected:
  static InstructionModel Open(Stage stage, const std::vector<std::string>& settings,
                               uint64_t seed = 1) {
    Recipe recipe;
    for (const std::string& setting : settings) recipe.Set(setting);
    return OpenInstructionModel(InstructionSettings::From(recipe, stage), seed);
  }
  static std::string Refusal(Stage stage, const std::vector<std::string>& settings) {
    try {
      Open(stage, settings);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }

  // The decoder of the fixtures' model with the keys of LLaMA alone.
  static void WriteDecoderAlone(const std::filesystem::path& folder) {
    std::filesystem::create_directories(folder);
    const auto original = FixturesDir() / "orig-f32";
    for (const char* name : {"tokenizer.model", "tokenizer_config.json"}) {
      std::filesystem::copy_file(original / name, folder / name);
    }
    std::ifstream file(original / "config.json");
    nlohmann::json config = nlohmann::json::parse(file);
    std::vector<std::string> keys;
    for (const auto& [key, value] : config.items()) {
      if (key.starts_with("mm_") || key.find("mm_") != std::string::npos) keys.push_back(key);
    }
    for (const std::string& key : keys) config.erase(key);
    config.erase("image_aspect_ratio");
    config["model_type"] = "llama";
    std::ofstream(folder / "config.json") << config;
    std::map<std::string, at::Tensor> tensors;
    const LanguageCheckpoint whole = OpenLanguage(FixturesDir() / "tiny-llava");
    const int64_t vocab = config["vocab_size"];
    for (const auto& [name, info] : whole.tensors.tensors()) {
      if (name.find("mm_projector") != std::string::npos) continue;
      at::Tensor tensor = whole.tensors.Get(name);
      if (name.ends_with("embed_tokens.weight") || name == "lm_head.weight") {
        tensor = tensor.narrow(0, 0, vocab);  // without rows that are padding
      }
      tensors[name] = tensor.contiguous();
    }
    SaveSafetensors(folder / "model.safetensors", tensors);
  }

  const std::string tiny_ = "model=" + (FixturesDir() / "tiny-llava").string();
  const std::string original_ = "model=" + (FixturesDir() / "orig-f32").string();
  const std::string clip_ = "tower=" + (FixturesDir() / "clip-tower").string();
  InstructionWorld world_;
};

TEST_F(InstructionModelTest, Stage1DrawsAProjectorAsPyTorchDoes) {
  const InstructionModel model = Open(Stage::kAlign, {tiny_});
  const ProjectorConfig& config = model.language.config.projector;
  for (const auto& [name, in] : {std::pair{"model.mm_projector.0.", config.in_width},
                                 {"model.mm_projector.2.", config.out_width}}) {
    const double bound = 1 / std::sqrt(static_cast<double>(in));
    const at::Tensor weight = model.language.tensors.Get(std::string(name) + "weight");
    EXPECT_LE(weight.abs().max().item<double>(), bound);
    EXPECT_NEAR(weight.std().item<double>(), bound / std::sqrt(3.0), 0.03 * bound);
    EXPECT_LE(model.language.tensors.Get(std::string(name) + "bias").abs().max().item<double>(),
              bound);
  }
  const auto weight = [&](const std::vector<std::string>& settings, uint64_t seed) {
    return Open(Stage::kAlign, settings, seed).language.tensors.Get("model.mm_projector.2.weight");
  };
  EXPECT_TRUE(at::equal(weight({tiny_}, 1), weight({tiny_}, 1)));
  EXPECT_FALSE(at::equal(weight({tiny_}, 1), weight({tiny_}, 2)));
  EXPECT_LT(weight({tiny_, "projector.init=small"}, 1).std().item<double>(),
            0.5 * weight({tiny_}, 1).std().item<double>());
  const at::Tensor kept =
      OpenLanguage(FixturesDir() / "tiny-llava").tensors.Get("model.mm_projector.2.weight");
  EXPECT_TRUE(at::equal(weight({tiny_, "projector.init=keep"}, 1), kept));
  EXPECT_TRUE(at::equal(
      Open(Stage::kFinetune, {tiny_}).language.tensors.Get("model.mm_projector.2.weight"), kept));
}

TEST_F(InstructionModelTest, AFreshProjectorMayBeOfAnotherType) {
  const InstructionModel model =
      Open(Stage::kAlign, {tiny_, "projector.type=linear", "select_layer=-1", "image_mode=crop"});
  EXPECT_EQ(model.language.config.projector.depth, 1);
  EXPECT_TRUE(model.language.tensors.tensors().contains("model.mm_projector.weight"));
  EXPECT_FALSE(model.language.tensors.tensors().contains("model.mm_projector.0.weight"));
  EXPECT_EQ(model.language.config.features.select_layer, -1);
  EXPECT_EQ(model.language.config.features.image_mode, ImageMode::kCrop);
  const auto task = world_.Make(Stage::kAlign, {"projector.type=linear", "batch_size=2"});
  EXPECT_GT(task->Forward(0, 0).loss.item<double>(), 0);
  const LanguageCheckpoint published =
      OpenLanguage(task->Publish(world_.folder() / "repository", "linear", {}));
  EXPECT_EQ(published.config.projector.type(), "linear");
}

TEST_F(InstructionModelTest, StartsFromAStage1File) {
  for (const char* folder : {"stage1-mlp", "stage1-linear"}) {
    const std::string from =
        "projector.from=" + (FixturesDir() / folder / "mm_projector.bin").string();
    for (const Stage stage : {Stage::kAlign, Stage::kFinetune}) {
      const InstructionModel model = Open(stage, {original_, clip_, from});
      EXPECT_EQ(model.language.config.projector.type(),
                std::string(folder) == "stage1-mlp" ? "mlp2x_gelu" : "linear");
    }
  }
  const InstructionModel model =
      Open(Stage::kFinetune,
           {original_, clip_,
            "projector.from=" + (FixturesDir() / "stage1-mlp/mm_projector.bin").string()});
  EXPECT_LT(
      MaxDifference(
          model.language.tensors.Get("model.mm_projector.0.weight"),
          OpenLanguage(FixturesDir() / "tiny-llava").tensors.Get("model.mm_projector.0.weight")),
      1e-6);
}

// As Vicuna is published: LLaMA's keys, no word about pictures.
TEST_F(InstructionModelTest, Stage1BeginsWithALanguageModelAlone) {
  const std::filesystem::path folder = world_.folder() / "vicuna";
  WriteDecoderAlone(folder);
  const std::string alone = "model=" + folder.string();
  const InstructionModel model = Open(Stage::kAlign, {alone, clip_});
  const LanguageConfig& config = model.language.config;
  EXPECT_EQ(config.projector.type(), "mlp2x_gelu");
  EXPECT_EQ(config.projector.in_width, model.tower.config.hidden_size);
  EXPECT_EQ(config.features.select_layer, -2);
  EXPECT_EQ(config.features.image_mode, ImageMode::kPad);
  EXPECT_EQ(model.language.chat_template->name(), "v1");
  const LanguageCheckpoint whole = OpenLanguage(FixturesDir() / "tiny-llava");
  for (const char* name : {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}) {
    EXPECT_TRUE(at::equal(model.language.tensors.Get(name), whole.tensors.Get(name))) << name;
  }
  EXPECT_EQ(
      Open(Stage::kAlign, {alone, clip_, "projector.type=linear"}).language.config.projector.depth,
      1);

  // Stage 1 on it, stage 2 from what that published or from the published file of another's.
  const auto root = world_.folder() / "repository";
  const auto align = world_.Make(Stage::kAlign, {alone, clip_, "batch_size=2"});
  EXPECT_GT(align->Forward(0, 0).loss.item<double>(), 0);
  const auto version = align->Publish(root, "aligned", {});
  EXPECT_EQ(OpenLanguage(version).tower_digest, model.tower.digest);
  Open(Stage::kFinetune, {"model=" + version.string(), clip_});
  const InstructionModel from = Open(
      Stage::kFinetune,
      {alone, clip_, "projector.from=" + (FixturesDir() / "stage1-mlp/mm_projector.bin").string()});
  EXPECT_LT(MaxDifference(from.language.tensors.Get("model.mm_projector.0.weight"),
                          whole.tensors.Get("model.mm_projector.0.weight")),
            1e-6);

  const auto tiles =
      world_.Make(Stage::kAlign, {alone, clip_, "batch_size=2", "image_mode=anyres"});
  EXPECT_GT(tiles->Forward(0, 0).loss.item<double>(), 0);
  EXPECT_EQ(OpenLanguage(tiles->Publish(root, "tiles", {})).config.features.grid,
            PublishedGrid(static_cast<int>(model.tower.config.image_size)));

  EXPECT_THAT(Refusal(Stage::kAlign, {alone}), HasSubstr("set \"tower\""));
  EXPECT_THAT(Refusal(Stage::kFinetune, {alone, clip_}), HasSubstr("without a projector"));
  EXPECT_THROW(OpenLanguage(folder), std::runtime_error);  // nothing that answers about pictures
}

TEST_F(InstructionModelTest, AnAssumedTemplateIsTold) {
  const std::filesystem::path folder = world_.folder() / "vicuna";
  WriteDecoderAlone(folder);
  const std::string alone = "model=" + folder.string();
  const std::string told = folder.string() + " tells no chat template: \"v1\" is assumed";
  EXPECT_THAT(world_.Told(Stage::kAlign, {alone, clip_}),
              HasSubstr(told + ", and published; chat_template=... in stage 2 names another\n"));
  const Settings plain = {alone, clip_, "chat_template=plain", "skip_bad=true"};
  EXPECT_THAT(world_.Told(Stage::kAlign, plain), HasSubstr(told));
  const auto silent = testing::Not(HasSubstr("chat template"));
  EXPECT_THAT(world_.Told(Stage::kAlign, {alone, clip_, "chat_template=v0"}), silent);
  const auto version =
      world_.Make(Stage::kAlign, {alone, clip_})->Publish(world_.folder() / "models", "a", {});
  EXPECT_THAT(world_.Told(Stage::kFinetune, {"model=" + version.string(), clip_}), silent);
}

TEST_F(InstructionModelTest, ANewTowerNeedsANewProjector) {
  TowerCheckpoint other;
  other.config = TinyTowerConfig();
  other.config.preprocess.image_size = other.config.image_size;
  other.tensors = MemoryTensors(RandomTower(other.config));
  other.digest = HashBytes("another tower");
  const auto root = world_.folder() / "repository";
  const std::string tower = "tower=" + PublishTower(other, root, "eye").string();
  EXPECT_THAT(Refusal(Stage::kFinetune, {tiny_, tower}), HasSubstr("projector.init=fresh"));
  const InstructionModel model = Open(Stage::kAlign, {tiny_, tower});
  EXPECT_EQ(model.language.tower_digest, other.digest);
  EXPECT_EQ(model.language.tower_patches, other.config.num_patches());
  EXPECT_EQ(model.language.config.projector.in_width, other.config.hidden_size);
  const auto task = world_.Make(Stage::kAlign, {tower, "batch_size=2"});
  const auto version = task->Publish(root, "pair", {});
  EXPECT_EQ(OpenLanguage(version).tower_digest, other.digest);
  EXPECT_THAT(Refusal(Stage::kFinetune, {"model=" + version.string()}),
              HasSubstr("its tower is an entry of its own: set \"tower\""));
  Open(Stage::kFinetune, {"model=" + version.string(), tower});
}

TEST_F(InstructionModelTest, TheTemplateOfTheChatsIsPublished) {
  const auto published = [&](Stage stage, const char* name) {
    const auto task = world_.Make(stage, {std::string("chat_template=") + name, "skip_bad=true"});
    return OpenLanguage(task->Publish(world_.folder() / "repository", "t", {}))
        .chat_template->name();
  };
  EXPECT_EQ(published(Stage::kFinetune, "llava_v0"), "llava_v0");
  EXPECT_EQ(published(Stage::kAlign, "plain"), "v1") << "nobody can chat in the plain template";
}

TEST_F(InstructionModelTest, ATowerMustHaveTheModelsLayer) {
  TowerCheckpoint shallow;
  shallow.config = TinyTowerConfig();
  shallow.config.num_layers = 2;
  shallow.config.preprocess.image_size = shallow.config.image_size;
  shallow.tensors = MemoryTensors(RandomTower(shallow.config));
  shallow.digest = HashBytes("a shallow tower");
  const auto root = world_.folder() / "repository";
  const std::string tower = "tower=" + PublishTower(shallow, root, "eye").string();
  const auto deep = world_.Make(Stage::kAlign, {"select_layer=-4", "batch_size=2"});
  const std::string model = "model=" + deep->Publish(root, "deep", {}).string();
  EXPECT_THAT(Refusal(Stage::kAlign, {model, tower}),
              HasSubstr("reads the tower's layer -4, the tower has layers from 0 to 2: set "
                        "\"select_layer\""));
  Open(Stage::kAlign, {model, tower, "select_layer=-2"});
}

TEST_F(InstructionModelTest, RefusesSettingsThatDoNotFitTogether) {
  const auto refused = [&](Stage stage, const std::vector<std::string>& settings,
                           const char* says) {
    EXPECT_THAT(Refusal(stage, settings), HasSubstr(says));
  };
  refused(Stage::kAlign, {}, "\"model\" is missing");
  refused(Stage::kFinetune, {tiny_, "projector.type=linear"}, "set projector.init=fresh too");
  refused(Stage::kFinetune, {tiny_, "projector.init=fresh", "projector.type=round"}, "round");
  refused(Stage::kAlign, {tiny_, "projector.from=x", "projector.init=fresh"}, "set one of them");
  refused(Stage::kFinetune, {tiny_, "select_layer=-1"}, "let it start anew");
  refused(Stage::kAlign, {tiny_, "select_layer=99"}, "the tower has layers from 0 to");
  refused(Stage::kAlign, {tiny_, "select_layer=last"}, "expected a whole number");
  refused(Stage::kAlign, {tiny_, clip_}, "");
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {"max_tokens=100000"}), HasSubstr("positions"));
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {"data="}), HasSubstr("\"data\" is missing"));
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {"batchsize=4"}), HasSubstr("did you mean batch_size"));
}

}  // namespace
}  // namespace llava
