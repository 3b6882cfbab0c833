#include "model/checkpoint/hf_export.h"

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/memory_tensors.h"
#include "model/checkpoint/tensor_file.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

struct Model {
  LanguageCheckpoint language;
  TowerCheckpoint tower;
};

Model Open(const fs::path& path, const std::string& chat_template = "") {
  std::optional<TowerCheckpoint> tower;
  OpenOptions options;
  options.chat_template = chat_template;
  LanguageCheckpoint language = OpenLanguage(path, options, &tower);
  return {std::move(language), std::move(*tower)};
}

Model Emoji() {
  const fs::path root = fs::path(SourceDir()) / "deploy/models";
  return {OpenLanguage(root / "emoji"), OpenTower(root / "emoji-tower")};
}

void ExpectSameTensors(const TensorSource& a, const TensorSource& b) {
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const auto& [name, info] : a.tensors()) {
    EXPECT_EQ(b.tensors().at(name).dtype, info.dtype) << name;
    EXPECT_TRUE(at::equal(a.Get(name), b.Get(name))) << name;
  }
}

json ReadJson(const fs::path& path) { return json::parse(ReadBytes(path)); }

std::vector<int32_t> IdsOf(const LanguageCheckpoint& model,
                           const std::vector<ChatMessage>& messages) {
  return model.tokenizer->EncodePrompt(model.chat_template->Render(messages));
}

const std::vector<ChatMessage> kQuestion = {
    {ChatMessage::Role::kUser, "What is in the picture, and where  is it?", 1, {}}};
const std::vector<ChatMessage> kPictureAlone = {{ChatMessage::Role::kUser, "", 1, {}}};
const std::vector<ChatMessage> kSecondQuestion = {
    kQuestion[0],
    {ChatMessage::Role::kAssistant, "A red apple.", 0, {}},
    {ChatMessage::Role::kUser, "Can I eat it?", 0, {}}};

// All but the tables' new rows, and what a model is told by.
void ExpectSameModel(const Model& before, const Model& after) {
  EXPECT_EQ(after.tower.digest, before.tower.digest);
  ExpectSameTensors(after.tower.tensors, before.tower.tensors);
  EXPECT_EQ(ToJson(after.tower.config), ToJson(before.tower.config));
  LanguageConfig config = after.language.config;
  config.decoder.vocab_size = before.language.config.decoder.vocab_size;
  EXPECT_EQ(ToJson(config, after.language.tower_patches),
            ToJson(before.language.config, before.language.tower_patches));
  EXPECT_EQ(after.language.tower_digest, before.language.tower_digest);
  EXPECT_EQ(IdsOf(after.language, kQuestion), IdsOf(before.language, kQuestion));
  EXPECT_EQ(IdsOf(after.language, kPictureAlone), IdsOf(before.language, kPictureAlone));
}

TEST(HfExportTest, TheDefaultModelComesBack) {
  const TempFolder folder;
  const Model emoji = Emoji();
  ASSERT_TRUE(ExportHf(emoji.language, emoji.tower, folder.path() / "out"));
  const Model read = Open(folder.path() / "out", "emoji");
  ExpectSameModel(emoji, read);
  ExpectSameTensors(read.language.tensors, emoji.language.tensors);
  EXPECT_EQ(IdsOf(read.language, kSecondQuestion), IdsOf(emoji.language, kSecondQuestion));
  const json config = ReadJson(folder.path() / "out/config.json");
  EXPECT_EQ(config["image_token_index"], 6) << "its own piece";
  EXPECT_EQ(config["pad_token_id"], 3);
  EXPECT_EQ(config["image_seq_length"], 36);
  EXPECT_TRUE(config["tie_word_embeddings"].get<bool>());
  EXPECT_EQ(ReadJson(folder.path() / "out/tokenizer_config.json")["model_input_names"],
            (json{"input_ids", "attention_mask"}));
  EXPECT_THAT(ReadBytes(folder.path() / "out/chat_template.jinja"),
              AllOf(HasSubstr("{{ \"USER:\" }}"), HasSubstr("{{ \"ASSISTANT:\" }}")));
}

// The folder that transformers wrote, again.
TEST(HfExportTest, ALlavaHfFolderComesBack) {
  const TempFolder folder;
  const Model tiny = Open(FixturesDir() / "tiny-llava");
  const fs::path out = folder.path() / "out";
  ASSERT_TRUE(ExportHf(tiny.language, tiny.tower, out));
  const auto before = OpenTensorFolder(FixturesDir() / "tiny-llava"), after = OpenTensorFolder(out);
  ASSERT_EQ(after->tensors().size(), before->tensors().size());
  for (const auto& [name, info] : before->tensors()) {
    ASSERT_TRUE(after->tensors().contains(name)) << name;
    EXPECT_TRUE(at::equal(after->Get(name), before->Get(name))) << name;
  }
  const Model read = Open(out);
  ExpectSameModel(tiny, read);
  EXPECT_EQ(read.language.tokenizer->digest(), tiny.language.tokenizer->digest());
  EXPECT_EQ(IdsOf(read.language, kSecondQuestion), IdsOf(tiny.language, kSecondQuestion));

  // What both say about the same key; numbers of no use to a model are left out.
  for (const char* file : {"config.json", "preprocessor_config.json", "processor_config.json",
                           "generation_config.json", "tokenizer_config.json"}) {
    const json ours = ReadJson(out / file).flatten(),
               theirs = ReadJson(FixturesDir() / "tiny-llava" / file).flatten();
    size_t same = 0;
    for (const auto& [key, value] : theirs.items()) {
      if (!ours.contains(key) || key == "/tokenizer_class" ||
          key == "/vision_config/projection_dim")
        continue;
      ++same;
      if (value.is_number_float()) {
        EXPECT_FLOAT_EQ(ours[key].get<float>(), value.get<float>()) << file << key;
      } else {
        EXPECT_EQ(ours[key], value) << file << key;
      }
    }
    EXPECT_GE(same, file == std::string("generation_config.json") ? 3u : 4u) << file;
  }
  const json ours = ReadJson(out / "tokenizer.json"),
             theirs = ReadJson(FixturesDir() / "tiny-llava/tokenizer.json");
  for (const char* key : {"added_tokens", "pre_tokenizer", "post_processor", "decoder"}) {
    EXPECT_EQ(ours[key], theirs[key]) << key;
  }
  for (const char* key : {"vocab", "merges"}) {  // too long to be shown
    EXPECT_TRUE(ours["model"][key] == theirs["model"][key]) << key;
  }
}

// Original LLaVA has neither of llava-hf's two tokens.
TEST(HfExportTest, TablesGetTheRowsThatLlavaHfNeeds) {
  for (const char* fixture : {"orig-f32", "orig-bf16"}) {
    const TempFolder folder;
    const Model original = Open(FixturesDir() / fixture);
    const fs::path out = folder.path() / "out";
    ASSERT_TRUE(ExportHf(original.language, original.tower, out));
    const Model read = Open(out);
    ExpectSameModel(original, read);
    EXPECT_EQ(read.language.config.features.image_mode, ImageMode::kPad);
    const int64_t rows = original.language.config.decoder.vocab_size;
    EXPECT_EQ(read.language.config.decoder.vocab_size, 1024);
    EXPECT_EQ(read.language.tokenizer->IdOf("<image>"), rows);
    EXPECT_EQ(read.language.tokenizer->IdOf("<pad>"), rows + 1);
    for (const auto& [name, info] : original.language.tensors.tensors()) {
      const at::Tensor before = original.language.tensors.Get(name);
      at::Tensor after = read.language.tensors.Get(name);
      if (name == "model.embed_tokens.weight" || name == "lm_head.weight") {
        // Their logits are the mean of all others: never the largest.
        const at::Tensor mean = before.to(at::kFloat).mean(0).to(before.dtype());
        EXPECT_TRUE(at::equal(after[rows], mean)) << name;
        EXPECT_TRUE(at::equal(after[1023], mean)) << name;
        after = after.narrow(0, 0, rows);
      }
      EXPECT_TRUE(at::equal(after, before)) << name;
    }
  }
}

TEST(HfExportTest, TilesComeBack) {
  const TempFolder folder;
  for (const fs::path& source :
       {WriteTinyNext(folder.path() / "tiny"), WriteOriginalNext(folder.path() / "original")}) {
    const Model next = Open(source);
    const fs::path out = source.string() + "-out";
    ASSERT_TRUE(ExportHf(next.language, next.tower, out));
    const Model read = Open(out);
    ExpectSameModel(next, read);
    EXPECT_EQ(read.language.config.features.grid, next.language.config.features.grid);
    EXPECT_TRUE(at::equal(read.language.tensors.Get("model.image_newline"),
                          next.language.tensors.Get("model.image_newline")));
    const json config = ReadJson(out / "config.json");
    EXPECT_EQ(config["architectures"][0], "LlavaNextForConditionalGeneration");
    EXPECT_EQ(config["image_grid_pinpoints"][0], json({112, 56})) << "the height comes first";
  }
}

TEST(HfExportTest, TheFamilyOfMistralIsKept) {
  const TempFolder folder;
  const Model model = Open(FixturesDir() / "tiny-llava", "mistral_instruct");
  ASSERT_TRUE(ExportHf(model.language, model.tower, folder.path() / "out"));
  EXPECT_EQ(Open(folder.path() / "out").language.chat_template->name(), "mistral_instruct");
}

TEST(HfExportTest, LargeModelsComeInShards) {
  const TempFolder folder;
  const Model tiny = Open(FixturesDir() / "tiny-llava");
  const fs::path out = folder.path() / "out";
  HfExportOptions options;
  options.shard_bytes = 400'000;  // a table has 393216
  std::vector<uint64_t> steps;
  options.step = [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, tiny.language.tensors.tensors().size() + tiny.tower.tensors.tensors().size());
    steps.push_back(done);
    return true;
  };
  ASSERT_TRUE(ExportHf(tiny.language, tiny.tower, out, options));
  EXPECT_TRUE(std::is_sorted(steps.begin(), steps.end()));
  const json index = ReadJson(out / "model.safetensors.index.json");
  EXPECT_EQ(index["weight_map"]["language_model.lm_head.weight"],
            "model-00001-of-00007.safetensors");
  EXPECT_EQ(index["metadata"]["total_size"],
            tiny.language.tensors.bytes() + tiny.tower.tensors.bytes());
  EXPECT_FALSE(fs::exists(out / "model.safetensors"));
  ExpectSameTensors(Open(out).language.tensors, tiny.language.tensors);
  ExpectSameTensors(Open(out).tower.tensors, tiny.tower.tensors);
}

TEST(HfExportTest, WritesAnotherType) {
  const TempFolder folder;
  Model tiny = Open(FixturesDir() / "tiny-llava");
  HfExportOptions options;
  options.dtype = at::kHalf;
  ASSERT_TRUE(ExportHf(tiny.language, tiny.tower, folder.path() / "out", options));
  const Model read = Open(folder.path() / "out");
  for (const auto& [name, info] : read.tower.tensors.tensors()) {
    EXPECT_EQ(info.dtype, at::kHalf) << name;
    EXPECT_TRUE(
        at::equal(read.tower.tensors.Get(name), tiny.tower.tensors.Get(name).to(at::kHalf)));
  }
  EXPECT_EQ(ReadJson(folder.path() / "out/config.json")["torch_dtype"], "float16");

  const int64_t width = tiny.language.config.decoder.hidden_size;
  ReplaceTensors(tiny.language.tensors, {{"model.norm.weight", at::full({width}, 1e5)}});
  EXPECT_THAT(
      ErrorOf([&] { ExportHf(tiny.language, tiny.tower, folder.path() / "wide", options); }),
      AllOf(HasSubstr("model.norm.weight"), HasSubstr("--dtype bfloat16")));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "nothing is left";
}

TEST(HfExportTest, RefusesWhatLlavaHfCannotHold) {
  const TempFolder folder;
  const auto error = [&](const Model& model) {
    return ErrorOf([&] { ExportHf(model.language, model.tower, folder.path() / "out"); });
  };
  Model linear = Open(FixturesDir() / "orig-f32");
  OverlayProjector(linear.language, FixturesDir() / "stage1-linear");
  EXPECT_THAT(error(linear), AllOf(HasSubstr("its projector is linear"), HasSubstr("mlp2x_gelu")));
  Model packed = Open(FixturesDir() / "tiny-llava");
  packed.language.config.decoder.quantization = Quantization{"int8", 64, "panel32.v1"};
  EXPECT_THAT(error(packed),
              AllOf(HasSubstr("int8/64"), HasSubstr("the checkpoint that it was made from")));
  Model gaps = Open(FixturesDir() / "tiny-llava");
  TokenizerOptions options = gaps.language.tokenizer->options();
  options.added_tokens.emplace_back("<far>", 1005);
  gaps.language.tokenizer =
      std::make_shared<const Tokenizer>(gaps.language.tokenizer->model_bytes(), options);
  EXPECT_THAT(error(gaps), HasSubstr("no token with the id 1002"));
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(HfExportTest, OverwritesNothing) {
  const TempFolder folder;
  const Model tiny = Open(FixturesDir() / "tiny-llava");
  const fs::path out = folder.path() / "out";
  fs::create_directory(out);
  for (const std::string& name : {out.string(), out.string() + "/"}) {
    EXPECT_THAT(ErrorOf([&] { ExportHf(tiny.language, tiny.tower, name); }),
                HasSubstr("out: is there already"));
  }
  // Somebody else makes it meanwhile.
  fs::remove(out);
  HfExportOptions options;
  options.step = [&](uint64_t, uint64_t) {
    fs::create_directory(out);
    WriteBytes(out / "theirs", "x");
    return true;
  };
  EXPECT_THAT(ErrorOf([&] { ExportHf(tiny.language, tiny.tower, out, options); }),
              HasSubstr("out: is there already"));
  EXPECT_EQ(ReadBytes(out / "theirs"), "x");
  EXPECT_EQ(std::distance(fs::directory_iterator(out), {}), 1);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(HfExportTest, AStoppedOneLeavesNothing) {
  const TempFolder folder;
  const Model tiny = Open(FixturesDir() / "tiny-llava");
  for (const uint64_t stop_at : {0, 1, 40}) {
    HfExportOptions options;
    options.shard_bytes = 200'000;
    options.step = [&](uint64_t done, uint64_t) { return done < stop_at; };
    EXPECT_FALSE(ExportHf(tiny.language, tiny.tower, folder.path() / "out", options));
    EXPECT_TRUE(fs::is_empty(folder.path())) << stop_at;
  }
}

}  // namespace
}  // namespace llava
