#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/content_digest.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

void ExpectSameTensors(const TensorSource& a, const TensorSource& b) {
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const auto& [name, info] : a.tensors()) {
    ASSERT_TRUE(b.tensors().contains(name)) << name;
    EXPECT_TRUE(at::equal(a.Get(name), b.Get(name))) << name;
  }
}

using Tensors = std::map<std::string, at::Tensor>;

// Copies a fixture of one safetensors file and lets `edit` change its tensors.
std::filesystem::path Edited(const TempFolder& folder, const std::string& fixture,
                             const std::function<void(Tensors&)>& edit) {
  const auto path = CopyOf(fixture, folder);
  Tensors tensors;
  {
    const auto file = TensorFile::Open(path / "model.safetensors");
    for (const auto& [name, info] : file->tensors()) tensors[name] = file->Get(name).clone();
  }
  edit(tensors);
  SaveSafetensors(path / "model.safetensors", tensors);
  return path;
}

using Prefixes = std::vector<std::pair<std::string, std::string>>;

// Replaces the first prefix of the list that a name has.
std::function<void(Tensors&)> Renamed(const Prefixes& prefixes) {
  return [prefixes](Tensors& tensors) {
    Tensors renamed;
    for (const auto& [name, tensor] : tensors) {
      std::string now = name;
      for (const auto& [from, to] : prefixes) {
        if (!name.starts_with(from)) continue;
        now = to + name.substr(from.size());
        break;
      }
      renamed[now] = tensor;
    }
    tensors = std::move(renamed);
  };
}

TEST(CheckpointTest, EqualTowersHaveEqualDigestsInEveryLayout) {
  const TowerCheckpoint clip = OpenTower(FixturesDir() / "clip-tower");
  const TowerCheckpoint nested = OpenTower(FixturesDir() / "tiny-llava");
  const TowerCheckpoint outside = OpenTower(FixturesDir() / "orig-f32");
  const TowerCheckpoint rounded = OpenTower(FixturesDir() / "orig-bf16");
  ExpectSameTensors(clip.tensors, nested.tensors);
  EXPECT_EQ(clip.digest, nested.digest);
  EXPECT_EQ(clip.digest, outside.digest);
  EXPECT_NE(clip.digest, rounded.digest);
  EXPECT_EQ(rounded.tensors.tensors().begin()->second.dtype, at::kBFloat16);
  for (const auto& [name, info] : clip.tensors.tensors()) {
    EXPECT_TRUE(name.starts_with("vision_model.")) << name;
    EXPECT_TRUE(at::equal(clip.tensors.Get(name).to(at::kBFloat16), rounded.tensors.Get(name)));
  }
  EXPECT_EQ(clip.config.preprocess.image_size, clip.config.image_size);
}

TEST(CheckpointTest, ReadsLanguageModelsOfBothLayouts) {
  const LanguageCheckpoint nested = OpenLanguage(FixturesDir() / "tiny-llava");
  const LanguageCheckpoint original = OpenLanguage(FixturesDir() / "orig-f32");
  EXPECT_EQ(nested.tower_digest, original.tower_digest);
  EXPECT_EQ(nested.tower_patches, original.tower_patches);
  EXPECT_NE(nested.digest, original.digest);
  EXPECT_EQ(nested.name, "tiny-llava");
  EXPECT_EQ(original.config.features.image_mode, ImageMode::kPad);
  EXPECT_EQ(nested.config.features.image_mode, ImageMode::kCrop);
  EXPECT_EQ(nested.chat_template->name(), "v1");
  EXPECT_TRUE(nested.tokenizer->options().image_inline);
  EXPECT_FALSE(original.tokenizer->options().image_inline);
  // The nested layout has more rows in its tables; everything else is the same.
  const int64_t rows = original.config.decoder.vocab_size;
  EXPECT_GE(nested.config.decoder.vocab_size, rows);
  for (const auto& [name, info] : original.tensors.tensors()) {
    at::Tensor tensor = nested.tensors.Get(name);
    if (name == "lm_head.weight" || name == "model.embed_tokens.weight") {
      tensor = tensor.narrow(0, 0, rows);
    }
    EXPECT_TRUE(at::equal(original.tensors.Get(name), tensor)) << name;
  }
}

TEST(CheckpointTest, ReadsEveryGenerationOfNestedNames) {
  std::optional<TowerCheckpoint> own;
  const LanguageCheckpoint language = OpenLanguage(FixturesDir() / "tiny-llava", {}, &own);
  const TowerCheckpoint tower = OpenTower(FixturesDir() / "tiny-llava");
  ASSERT_TRUE(own.has_value());
  EXPECT_EQ(own->digest, tower.digest);
  ExpectSameTensors(own->tensors, tower.tensors);
  const Prefixes generations[] = {// in memory since 4.52, in files since 5
                                  {{"language_model.model.", "model.language_model."},
                                   {"language_model.lm_head", "lm_head"},
                                   {"vision_tower.", "model.vision_tower."},
                                   {"multi_modal_projector.", "model.multi_modal_projector."}},
                                  // the same without the tower's inner prefix
                                  {{"language_model.model.", "model.language_model."},
                                   {"language_model.lm_head", "lm_head"},
                                   {"vision_tower.vision_model.", "model.vision_tower."},
                                   {"multi_modal_projector.", "model.multi_modal_projector."}}};
  for (const Prefixes& prefixes : generations) {
    const TempFolder folder;
    const auto path = Edited(folder, "tiny-llava", Renamed(prefixes));
    ExpectSameTensors(OpenLanguage(path).tensors, language.tensors);
    EXPECT_EQ(OpenTower(path).digest, tower.digest);
  }
}

TEST(CheckpointTest, IgnoresWhatIsNoWeight) {
  const TempFolder folder;
  const auto path = Edited(folder, "tiny-llava", [](Tensors& tensors) {
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({4});
    tensors["vision_tower.vision_model.embeddings.position_ids"] = at::arange(17);
  });
  ExpectSameTensors(OpenLanguage(path).tensors, OpenLanguage(FixturesDir() / "tiny-llava").tensors);
}

TEST(CheckpointTest, NamesAllTensorsThatDoNotFitAtOnce) {
  const TempFolder folder;
  const auto path = Edited(folder, "tiny-llava", [](Tensors& tensors) {
    tensors.erase("language_model.model.norm.weight");
    tensors.erase("language_model.model.layers.1.mlp.up_proj.weight");
    tensors["language_model.model.layers.0.input_layernorm.weight"] = at::ones({7});
    tensors["language_model.model.layers.1.input_layernorm.weight"] =
        tensors["language_model.model.layers.1.input_layernorm.weight"].to(at::kInt);
    tensors["image_newline"] = at::ones({3});
  });
  EXPECT_THAT(
      ErrorOf([&] { OpenLanguage(path); }),
      AllOf(HasSubstr(path.string()), HasSubstr("missing: model.layers.1.mlp.up_proj.weight"),
            HasSubstr("model.norm.weight ["), HasSubstr("surplus: model.image_newline"),
            HasSubstr("model.layers.0.input_layernorm.weight is [7], expected ["),
            HasSubstr("model.layers.1.input_layernorm.weight is I32")));
  const TempFolder other;
  const auto broken_tower = Edited(other, "tiny-llava", [](Tensors& tensors) {
    tensors.erase("vision_tower.vision_model.embeddings.class_embedding");
    tensors["vision_tower.vision_model.extra"] = at::ones({3});
  });
  EXPECT_THAT(ErrorOf([&] { OpenTower(broken_tower); }),
              AllOf(HasSubstr("missing: vision_model.embeddings.class_embedding"),
                    HasSubstr("surplus: vision_model.extra")));
}

TEST(CheckpointTest, RefusesTwoTensorsOfOneName) {
  const TempFolder folder;
  const auto path = Edited(folder, "tiny-llava", [](Tensors& tensors) {
    tensors["model.language_model.norm.weight"] = tensors["language_model.model.norm.weight"];
  });
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(path); }),
              AllOf(HasSubstr("model.language_model.norm.weight"),
                    HasSubstr("language_model.model.norm.weight")));
}

TEST(CheckpointTest, TiedTablesNeedNoHead) {
  const TempFolder folder, second;
  const auto tie = [](const std::filesystem::path& path) {
    EditJson(path / "config.json",
             [](auto& config) { config["text_config"]["tie_word_embeddings"] = true; });
    return path;
  };
  const auto without = tie(Edited(folder, "tiny-llava", [](Tensors& tensors) {
    tensors.erase("language_model.lm_head.weight");
  }));
  const LanguageCheckpoint tied = OpenLanguage(without);
  EXPECT_TRUE(tied.config.decoder.tie_word_embeddings);
  EXPECT_FALSE(tied.tensors.tensors().contains("lm_head.weight"));
  ExpectSameTensors(OpenLanguage(tie(CopyOf("tiny-llava", second))).tensors, tied.tensors);
}

TEST(CheckpointTest, FindsTheTowerOfAnOriginalCheckpoint) {
  const TempFolder folder;
  const auto path = CopyOf("orig-f32", folder);  // without the clip-tower beside it
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(path); }),
              AllOf(HasSubstr("no vision tower inside"), HasSubstr("--tower")));
  const OpenOptions options{FixturesDir() / "clip-tower", "", true};
  EXPECT_EQ(OpenLanguage(path, options).tower_digest, OpenTower(options.tower).digest);

  const auto inside = CopyOf("orig-bf16", folder);
  EXPECT_THAT(ErrorOf([&] { OpenTower(inside); }), HasSubstr("not its settings"));
  // The folder lends its settings; the rounded tensors inside win over its own.
  EXPECT_EQ(OpenTower(inside, options).digest, OpenTower(FixturesDir() / "orig-bf16").digest);
  EXPECT_THAT(ErrorOf([&] { OpenTower(FixturesDir() / "tiny-llava", options); }),
              HasSubstr("has its own tower"));
  CopyOf("clip-tower", folder);
  EXPECT_EQ(OpenTower(inside).digest, OpenTower(FixturesDir() / "orig-bf16").digest);
}

TEST(CheckpointTest, OverlaysProjectors) {
  LanguageCheckpoint checkpoint = OpenLanguage(FixturesDir() / "orig-f32");
  const LanguageCheckpoint before = checkpoint;
  OverlayProjector(checkpoint, FixturesDir() / "stage1-mlp");
  ExpectSameTensors(checkpoint.tensors, before.tensors);  // it is the same projector

  OverlayProjector(checkpoint, FixturesDir() / "stage1-linear/mm_projector.bin");
  EXPECT_EQ(checkpoint.config.projector.type(), "linear");
  EXPECT_EQ(checkpoint.tensors.Get("model.mm_projector.weight").scalar_type(), at::kHalf);
  EXPECT_FALSE(checkpoint.tensors.tensors().contains("model.mm_projector.0.weight"));
  EXPECT_NE(checkpoint.digest, before.digest);

  const TempFolder folder;
  const auto file = folder.path() / "p.bin";
  const int64_t in = before.config.projector.in_width, out = before.config.projector.out_width;
  SaveSafetensors(file, {{"base.x.mm_projector.0.weight", at::ones({out, in})},
                         {"base.x.mm_projector.0.bias", at::ones({out})}});
  OverlayProjector(checkpoint, file);  // mlp1x_gelu
  EXPECT_EQ(checkpoint.config.projector.depth, 1);
  EXPECT_TRUE(at::equal(checkpoint.tensors.Get("model.mm_projector.bias"), at::ones({out})));

  SaveSafetensors(file, {{"mm_projector.weight", at::ones({out, in + 1})},
                         {"mm_projector.bias", at::ones({out})}});
  EXPECT_THAT(ErrorOf([&] { OverlayProjector(checkpoint, file); }), HasSubstr("misshapen"));
  SaveSafetensors(file, {{"mm_projector.weight", at::ones({out, in})},
                         {"model.embed_tokens.weight", at::ones({2, out})}});
  EXPECT_THAT(ErrorOf([&] { OverlayProjector(checkpoint, file); }),
              HasSubstr("model.embed_tokens.weight"));
  EXPECT_EQ(checkpoint.config.projector.depth, 1) << "a failed overlay changes nothing";
}

TEST(CheckpointTest, SaysWhatAFolderIs) {
  const auto language = [](const std::filesystem::path& path) {
    return ErrorOf([&] { OpenLanguage(path); });
  };
  EXPECT_THAT(
      language(FixturesDir() / "stage1-mlp"),
      AllOf(HasSubstr("projector only"), HasSubstr("projector.from"), HasSubstr("--projector")));
  EXPECT_THAT(language(FixturesDir() / "clip-tower"), HasSubstr("is a vision tower"));
  EXPECT_THAT(language(FixturesDir() / "images"), HasSubstr("is no checkpoint"));
  EXPECT_THAT(language("/nowhere"), HasSubstr("is not a folder"));
  const TempFolder folder;
  WriteBytes(folder.path() / "config.json", R"({"model_type": "bert"})");
  EXPECT_THAT(language(folder.path()), HasSubstr("bert"));
  WriteBytes(folder.path() / "config.json", "[1, 2");
  EXPECT_THAT(language(folder.path()), HasSubstr("not a JSON object"));
  WriteBytes(folder.path() / "config.json", R"({"model_type": "llama"})");
  SaveSafetensors(folder.path() / "model.safetensors", {{"model.norm.weight", at::ones({2})}});
  EXPECT_THAT(language(folder.path()), AllOf(HasSubstr("llava-train align"),
                                             HasSubstr("llava-train finetune, projector.from")));
}

// LLaVA-1.6-34B: the end token of tokenizer.model is not that of its answers.
TEST(CheckpointTest, ATokenizerWithChatMlGetsItsTemplate) {
  const TempFolder folder;
  const auto path = CopyOf("tiny-llava", folder);
  std::string model = ReadBytes(path / "tokenizer.model");
  for (const std::string text : {"<|im_start|>", "<|im_end|>"}) {  // more pieces, user-defined
    const std::string piece = "\x0A" + std::string(1, static_cast<char>(text.size())) + text +
                              std::string("\x15\0\0\0\0\x18\x04", 7);
    model += "\x0A" + std::string(1, static_cast<char>(piece.size())) + piece;
  }
  WriteBytes(path / "tokenizer.model", model);
  std::filesystem::remove(path / "tokenizer.json");
  const auto move = [](nlohmann::json& tokens) { tokens = {{"<image>", 1002}, {"<pad>", 1003}}; };
  EditJson(path / "added_tokens.json", move);
  EditJson(path / "tokenizer_config.json", [](nlohmann::json& config) {
    config["eos_token"] = "<|im_end|>";
    config.erase("added_tokens_decoder");
  });
  EditJson(path / "config.json",
           [](nlohmann::json& config) { config["image_token_index"] = 1002; });
  const LanguageCheckpoint checkpoint = OpenLanguage(path);
  EXPECT_EQ(checkpoint.chat_template->name(), "chatml_direct");
  EXPECT_TRUE(checkpoint.template_assumed);
  EXPECT_EQ(checkpoint.tokenizer->eos_id(), 1001);
  const std::vector<ChatMessage> question = {{ChatMessage::Role::kUser, "<|im_end|>", 0, {}}};
  const auto ids = checkpoint.tokenizer->EncodePrompt(checkpoint.chat_template->Render(question));
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1000), 3) << "system, user, assistant";
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1001), 2) << "a stranger's is text";
  EXPECT_EQ(ids[1], 1000);
  EXPECT_EQ(OpenLanguage(path, {"", "v1", true}).chat_template->name(), "v1");
}

TEST(CheckpointTest, ChoosesChatTemplates) {
  const auto path = FixturesDir() / "orig-f32";
  EXPECT_EQ(OpenLanguage(path, {"", "llava_v1", true}).chat_template->name(), "llava_v1");
  EXPECT_FALSE(OpenLanguage(path, {"", "llava_v1", true}).template_assumed);
  EXPECT_TRUE(OpenLanguage(path).template_assumed);
  EXPECT_THROW(OpenLanguage(path, {"", "no_such_template", true}), std::invalid_argument);
  const TempFolder folder;
  const auto file = folder.path() / "mine.json";
  WriteBytes(file, ChatTemplate::Builtin("v0").ToJson());
  EditJson(file, [](auto& json) { json["name"] = "mine"; });
  EXPECT_EQ(OpenLanguage(path, {"", file.string(), true}).chat_template->name(), "mine");
  WriteBytes(file, "{}");
  EXPECT_THAT(ErrorOf([&] {
                OpenLanguage(path, {"", file.string(), true});
              }),
              HasSubstr("mine.json"));
}

TEST(CheckpointTest, ForeignDigestFollowsSettingsAndWeights) {
  const TempFolder folder;
  CopyOf("clip-tower", folder);
  const auto path = CopyOf("orig-bf16", folder);
  const Sha256Digest digest = OpenLanguage(path).digest;
  EXPECT_EQ(OpenLanguage(path).digest, digest);
  EXPECT_NE(OpenLanguage(path, {"", "v0", true}).digest, digest);
  const auto shard = path / "model-00002-of-00002.safetensors";
  std::string bytes = ReadBytes(shard);
  bytes[bytes.size() - 2] ^= 1;
  WriteBytes(shard, bytes);
  EXPECT_NE(OpenLanguage(path).digest, digest);
}

TEST(TensorSourceTest, AddsRenamesAndRemoves) {
  const TempFolder folder;
  SaveSafetensors(folder.path() / "m", {{"a", at::ones({2})}, {"b", at::zeros({3})}});
  const std::shared_ptr<const TensorFile> file = TensorFile::Open(folder.path() / "m");
  TensorSource source;
  source.Add("x", file, "a");
  EXPECT_THROW(source.Add("x", file, "b"), std::runtime_error);
  EXPECT_THROW(source.Add("y", file, "absent"), std::out_of_range);
  source.Rename("x", "z");
  source.Rename("absent", "w");
  EXPECT_EQ(source.tensors().size(), 1u);
  EXPECT_TRUE(at::equal(source.Get("z"), at::ones({2})));
  EXPECT_THROW(source.Get("x"), std::out_of_range);
  source.Remove("z");
  EXPECT_TRUE(source.tensors().empty());
}

}  // namespace
}  // namespace llava
