#include "model/checkpoint/lora_folder.h"

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/tensor_file.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

using Tensors = std::map<std::string, at::Tensor>;

constexpr const char* kQ = "model.layers.1.self_attn.q_proj.weight";
constexpr const char* kQInFile = "base_model.model.model.layers.1.self_attn.q_proj";

Tensors Read(const std::filesystem::path& file) {
  Tensors tensors;
  const auto opened = TensorFile::Open(file);
  for (const auto& [name, info] : opened->tensors()) tensors[name] = opened->Get(name).clone();
  return tensors;
}

class LoraFolderTest : public testing::Test {
 protected:
  // The fixture's adapter with its base and tower beside it.
  std::filesystem::path CopyAll() const {
    for (const char* name : {"clip-tower", "orig-f32"}) CopyOf(name, folder_);
    return CopyOf("lora", folder_);
  }
  // The adapter of a copy with other tensors.
  static void Edit(const std::filesystem::path& path, const std::function<void(Tensors&)>& edit) {
    Tensors tensors = Read(path / "adapter_model.safetensors");
    edit(tensors);
    SaveSafetensors(path / "adapter_model.safetensors", tensors);
  }

  const TempFolder folder_;
};

TEST_F(LoraFolderTest, IsOpenedMergedIntoItsBase) {
  const LanguageCheckpoint merged = OpenLanguage(FixturesDir() / "lora");
  const LanguageCheckpoint base = OpenLanguage(FixturesDir() / "orig-f32");
  EXPECT_EQ(merged.name, "lora");
  EXPECT_NE(merged.digest, base.digest);
  EXPECT_EQ(merged.tower_digest, base.tower_digest);
  EXPECT_EQ(merged.tokenizer->digest(), base.tokenizer->digest());
  EXPECT_EQ(OpenTower(FixturesDir() / "lora").digest, base.tower_digest);
  const Tensors factors = Read(FixturesDir() / "lora/adapter_model.safetensors");
  int adapted = 0;
  ASSERT_EQ(merged.tensors.tensors().size(), base.tensors.tensors().size());
  for (const auto& [name, info] : base.tensors.tensors()) {
    const std::string module = "base_model.model." + name.substr(0, name.rfind('.'));
    at::Tensor expected = base.tensors.Get(name);
    if (const auto a = factors.find(module + ".lora_A.weight"); a != factors.end()) {
      const at::Tensor& b = factors.at(module + ".lora_B.weight");
      expected = expected + 8.0 / 4.0 * at::matmul(b, a->second);
      ++adapted;
    }
    const at::Tensor found = merged.tensors.Get(name);
    EXPECT_EQ(found.scalar_type(), expected.scalar_type());
    EXPECT_TRUE(at::allclose(found, expected, 1e-5, 1e-6)) << name;
  }
  EXPECT_EQ(adapted, 3 * 7);
}

TEST_F(LoraFolderTest, TheBaseMayBeNamed) {
  CopyOf("clip-tower", folder_);
  const auto adapter = CopyOf("lora", folder_);
  const auto elsewhere = FixturesDir() / "orig-f32";
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(adapter); }),
              AllOf(HasSubstr("LoRA adapter"), HasSubstr("../orig-f32"), HasSubstr("--base")));
  OpenOptions options;
  options.base = elsewhere;
  const LanguageCheckpoint merged = OpenLanguage(adapter, options);
  EXPECT_TRUE(
      at::equal(merged.tensors.Get(kQ), OpenLanguage(FixturesDir() / "lora").tensors.Get(kQ)));
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(elsewhere, options); }), HasSubstr("is no LoRA adapter"));
  options.base = adapter;
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(adapter, options); }), HasSubstr("LoRA adapter itself"));
}

// As LLaVA-1.5's published adapters: over Vicuna, which knows no pictures.
TEST_F(LoraFolderTest, TheBaseMayBeALanguageModelAlone) {
  const auto adapter = CopyAll();
  const auto base = folder_.path() / "orig-f32";
  Tensors decoder;
  const LanguageCheckpoint whole = OpenLanguage(base);
  for (const auto& [name, info] : whole.tensors.tensors()) {
    if (name.find("mm_projector") == name.npos) decoder[name] = whole.tensors.Get(name).clone();
  }
  const at::Tensor expected = OpenLanguage(adapter).tensors.Get(kQ);
  for (const char* name : {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
                           "pytorch_model.bin.index.json"}) {
    std::filesystem::remove(base / name);
  }
  SaveSafetensors(base / "model.safetensors", decoder);
  EditJson(base / "config.json", [](json& config) {
    json plain = {{"model_type", "llama"}};
    for (const auto& [key, value] : config.items()) {
      if (key != "model_type" && key.find("mm_") == key.npos) plain[key] = value;
    }
    config = plain;
  });
  const LanguageCheckpoint merged = OpenLanguage(adapter);
  EXPECT_TRUE(at::equal(merged.tensors.Get(kQ), expected));
  // Without the projector that was trained with it there is none.
  std::filesystem::remove(adapter / "non_lora_trainables.bin");
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(adapter); }),
              HasSubstr("missing: model.mm_projector.0.bias"));
}

// As transformers' trainers write one of llava-hf, with what was trained whole beside the factors.
TEST_F(LoraFolderTest, NamesOfLlavaHfAreKnown) {
  CopyOf("tiny-llava", folder_);
  const auto adapter = CopyOf("lora", folder_);
  std::filesystem::remove(adapter / "config.json");
  std::filesystem::remove(adapter / "non_lora_trainables.bin");
  EditJson(adapter / "adapter_config.json",
           [](json& config) { config["base_model_name_or_path"] = "../tiny-llava"; });
  const at::Tensor bias = at::arange(96, at::kFloat);
  Edit(adapter, [&](Tensors& tensors) {
    Tensors renamed;
    const std::string before = "base_model.model.model.layers.";
    for (const auto& [name, tensor] : tensors) {
      renamed["base_model.model.language_model.model.layers." + name.substr(before.size())] =
          tensor;
    }
    renamed["base_model.model.multi_modal_projector.linear_2.bias"] = bias;
    // Of the tower, too.
    renamed
        ["base_model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj."
         "lora_A.default.weight"] = at::ones({4, 64});
    renamed
        ["base_model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj."
         "lora_B.default.weight"] = at::ones({64, 4});
    tensors = renamed;
  });
  const LanguageCheckpoint merged = OpenLanguage(adapter);
  EXPECT_TRUE(
      at::equal(merged.tensors.Get(kQ), OpenLanguage(FixturesDir() / "lora").tensors.Get(kQ)));
  EXPECT_TRUE(at::equal(merged.tensors.Get("model.mm_projector.2.bias"), bias));
  const std::string of_tower = "vision_model.encoder.layers.0.self_attn.q_proj.weight";
  EXPECT_TRUE(at::allclose(OpenTower(adapter).tensors.Get(of_tower),
                           OpenTower(folder_.path() / "tiny-llava").tensors.Get(of_tower) + 8));
}

TEST_F(LoraFolderTest, ScalesByTheRootOfTheRankWhereAsked) {
  const auto adapter = CopyAll();
  const at::Tensor base = OpenLanguage(folder_.path() / "orig-f32").tensors.Get(kQ);
  const at::Tensor plain = OpenLanguage(adapter).tensors.Get(kQ) - base;
  EditJson(adapter / "adapter_config.json", [](json& config) { config["use_rslora"] = true; });
  EXPECT_TRUE(at::allclose(OpenLanguage(adapter).tensors.Get(kQ) - base, 2 * plain, 1e-4, 1e-5));
}

TEST_F(LoraFolderTest, EachOfItsBytesNamesIt) {
  const auto adapter = CopyAll();
  const Sha256Digest before = OpenLanguage(adapter).digest;
  EXPECT_EQ(OpenLanguage(adapter).digest, before);
  Edit(adapter,
       [](Tensors& tensors) { tensors.at(std::string(kQInFile) + ".lora_B.weight")[95][3] += 1; });
  EXPECT_NE(OpenLanguage(adapter).digest, before);
}

TEST_F(LoraFolderTest, RefusesWhatItCannotMerge) {
  const auto adapter = CopyAll();
  const auto error = [&] { return ErrorOf([&] { OpenLanguage(adapter); }); };
  const std::string config = ReadBytes(adapter / "adapter_config.json");
  const auto with = [&](const char* key, const json& value) {
    WriteBytes(adapter / "adapter_config.json", config);
    EditJson(adapter / "adapter_config.json", [&](json& edited) { edited[key] = value; });
    return error();
  };
  EXPECT_THAT(with("use_dora", true), HasSubstr("use_dora"));
  EXPECT_THAT(with("bias", "all"), HasSubstr("\"bias\" is \"all\""));
  EXPECT_THAT(with("peft_type", "IA3"), HasSubstr("IA3"));
  EXPECT_THAT(with("alpha_pattern", {{"q_proj", 3}}), HasSubstr("alpha_pattern"));
  EXPECT_THAT(with("init_lora_weights", "pissa"), HasSubstr("a base of their own"));
  EXPECT_EQ(with("init_lora_weights", "gaussian"), "");
  EXPECT_THAT(with("base_model_name_or_path", "lmsys/vicuna-7b-v1.5"),
              AllOf(HasSubstr("lmsys/vicuna-7b-v1.5"), HasSubstr("--base")));
  EXPECT_THAT(with("base_model_name_or_path", "../clip-tower"), HasSubstr("layout CLIP"));
  WriteBytes(adapter / "adapter_config.json", config);

  const std::string file = ReadBytes(adapter / "adapter_model.safetensors");
  const auto edited = [&](const std::function<void(Tensors&)>& edit) {
    WriteBytes(adapter / "adapter_model.safetensors", file);
    Edit(adapter, edit);
    return error();
  };
  const std::string a = std::string(kQInFile) + ".lora_A.weight";
  const std::string b = std::string(kQInFile) + ".lora_B.weight";
  EXPECT_THAT(edited([&](Tensors& tensors) { tensors.erase(b); }),
              AllOf(HasSubstr(kQ), HasSubstr("lora_B is missing")));
  EXPECT_THAT(edited([&](Tensors& tensors) {
                tensors[b] = at::ones({95, 4});
              }),
              AllOf(HasSubstr(kQ), HasSubstr("[95, 4]")));
  EXPECT_THAT(edited([&](Tensors& tensors) { tensors[a] = at::ones({4}); }),
              AllOf(HasSubstr(kQ), HasSubstr("[4]")));
  EXPECT_THAT(
      edited([&](Tensors& tensors) {
        tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = at::ones({4, 96});
        tensors["base_model.model.model.layers.9.mlp.up_proj.lora_B.weight"] = at::ones({192, 4});
      }),
      HasSubstr("model.layers.9.mlp.up_proj.weight is not there"));
  EXPECT_THAT(edited([&](Tensors& tensors) {
                tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = at::ones({4, 9});
              }),
              HasSubstr("lora_embedding_A"));
  std::filesystem::remove(adapter / "adapter_model.safetensors");
  EXPECT_THAT(error(), HasSubstr("without adapter_model.safetensors"));
}

TEST_F(LoraFolderTest, AVersionOfARepositoryIsNoBase) {
  const auto version =
      PublishLanguage(OpenLanguage(FixturesDir() / "tiny-llava"), folder_.path(), "m");
  const auto adapter = CopyAll();
  OpenOptions options;
  options.base = version;
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(adapter, options); }), HasSubstr("layout repository"));
}

}  // namespace
}  // namespace llava
