// What the settings of a checkpoint may say, and how what is not supported is refused.

#include <cstdint>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/foreign_config.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// One setting changed; the error has to name it.
struct Change {
  const char* pointer;  // JSON pointer; null removes the key
  json value;
  const char* error;
};

// Of a checkpoint that may be changed.
void ExpectRefusals(const std::filesystem::path& path, const char* file,
                    const std::vector<Change>& changes) {
  const std::string original = ReadBytes(path / file);
  ASSERT_EQ(ErrorOf([&] { OpenLanguage(path); }), "");
  for (const auto& [pointer, value, error] : changes) {
    json settings = json::parse(original);
    settings[json::json_pointer(pointer)] = value;
    WriteBytes(path / file, settings.dump());
    EXPECT_THAT(ErrorOf([&] { OpenLanguage(path); }), HasSubstr(error))
        << pointer << " = " << value.dump();
  }
  WriteBytes(path / file, original);
}

void ExpectRefusals(const char* fixture, const char* file, const std::vector<Change>& changes) {
  const TempFolder folder;
  CopyOf("clip-tower", folder);
  ExpectRefusals(CopyOf(fixture, folder), file, changes);
}

TEST(CheckpointConfigTest, RefusesOriginalSettingsByName) {
  ExpectRefusals("orig-f32", "config.json",
                 {{"/model_type", "llava_mpt", "model_type"},
                  {"/mm_projector_type", "qformer", "unknown projector type \"qformer\""},
                  {"/mm_projector_type", "mlp99x_gelu", "mlp99x_gelu"},
                  {"/mm_projector_type", "mlp3x_gelu", "missing: model.mm_projector.4.bias"},
                  {"/image_aspect_ratio", "anyres_max_9", "square, pad and anyres"},
                  {"/image_aspect_ratio", "anyres", "spatial_unpad is supported"},
                  {"/mm_patch_merge_type", "spatial_unpad", "mm_patch_merge_type"},
                  {"/s2", true, "\"s2\""},
                  {"/mm_use_im_start_end", true, "mm_use_im_start_end"},
                  {"/mm_vision_select_layer", nullptr, "mm_vision_select_layer"},
                  {"/mm_vision_select_layer", 99, "vision layer 99"},
                  {"/mm_vision_select_layer", -99, "vision layer -99"},
                  {"/mm_vision_select_feature", "cls", "mm_vision_select_feature"},
                  {"/mm_hidden_size", 7, "7 values a patch"},
                  {"/mm_vision_tower", "someone/else", "--tower"},
                  {"/mm_vision_tower", ".", "is no CLIP folder"},
                  {"/hidden_act", "gelu", "hidden_act"},
                  {"/attention_bias", true, "attention_bias"},
                  {"/mlp_bias", true, "mlp_bias"},
                  {"/rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, "rope_scaling"},
                  {"/rope_parameters", {{"rope_type", "yarn"}}, "rope_type"},
                  {"/quantization_config", {{"bits", 4}}, "quantization_config"},
                  {"/num_attention_heads", 7, "num_attention_heads"},
                  {"/num_attention_heads", 0, "num_attention_heads"},
                  {"/num_key_value_heads", 4, "key/value heads"},
                  {"/num_hidden_layers", 0, "number of layers"},
                  {"/intermediate_size", -1, "inner size"},
                  {"/hidden_size", "big", "hidden_size"},
                  {"/vocab_size", 1, "vocabulary"},
                  {"/rms_norm_eps", 0, "rms_norm_eps"},
                  {"/eos_token_id", json::array({2, 3}), "eos_token_id"},
                  {"/eos_token_id", (int64_t{1} << 32) + 2, "\"eos_token_id\" is 4294967298"},
                  {"/bos_token_id", json::array({(int64_t{1} << 32) + 1}), "\"bos_token_id\""},
                  {"/eos_token_id", 1 << 20, "outside the vocabulary"}});
}

TEST(CheckpointConfigTest, RefusesNestedSettingsByName) {
  ExpectRefusals("tiny-llava", "config.json",
                 {{"/model_type", "llava_onevision", "model_type"},
                  {"/model_type", "llava_next", "is not made of 1 to 36 tiles of 56 pixels"},
                  {"/text_config/model_type", "qwen2", "text_config: \"model_type\""},
                  {"/text_config/head_dim", 3, "head size"},
                  {"/text_config/rope_scaling", {{"factor", 2}}, "rope_scaling"},
                  {"/projector_hidden_act", "relu", "projector_hidden_act"},
                  {"/multimodal_projector_bias", false, "multimodal_projector_bias"},
                  {"/vision_feature_layer", json::array({-2, -1}), "vision_feature_layer"},
                  {"/vision_feature_select_strategy", "cls", "vision_feature_select_strategy"},
                  {"/vision_config/model_type", "siglip_vision_model", "siglip"},
                  {"/vision_config/hidden_act", "silu", "hidden_act"},
                  {"/vision_config/num_attention_heads", 7, "not a multiple"},
                  {"/vision_config/num_channels", 1, "colour channels"},
                  {"/vision_config/layer_norm_eps", -1, "layer_norm_eps"},
                  {"/image_token_index", 5, "image_token_index"}});
  ExpectRefusals("tiny-llava", "preprocessor_config.json",
                 {{"/resample", 2, "resample"},
                  {"/do_center_crop", false, "do_center_crop"},
                  {"/rescale_factor", 1.0, "rescale_factor"},
                  {"/crop_size", {{"height", 30}, {"width", 31}}, "not square"},
                  {"/crop_size", {{"height", 56}}, "\"width\" is missing"},
                  {"/size", {{"height", 56}, {"width", 56}}, "shortest_edge alone is supported"},
                  {"/size", {{"shortest_edge", 56}, {"longest_edge", 80}}, "shortest_edge alone"},
                  {"/size", json::object(), "shortest_edge alone"},
                  {"/crop_size", 10, "\"size\""},
                  {"/image_mean", json::array({1, 2}), "image_mean"},
                  {"/image_std", json::array({0, 1, 1}), "image std"}});
}

// Whose towers are something else, too: that is no reason to ask for one, or to list its tensors.
TEST(CheckpointConfigTest, RefusesOtherFamiliesBeforeTheirTowers) {
  const TempFolder folder;  // without the tower that the original names
  const auto refusal = [&](const std::filesystem::path& path, const json& changes) {
    const std::string original = ReadBytes(path / "config.json");
    EditJson(path / "config.json", [&](json& config) { config.merge_patch(changes); });
    const std::string error = ErrorOf([&] { OpenLanguage(path); });
    WriteBytes(path / "config.json", original);
    return error;
  };
  const auto original = CopyOf("orig-f32", folder);
  EXPECT_THAT(refusal(original, json::object()), HasSubstr("--tower"));
  for (const char* type : {"llava_mpt", "llava_qwen"}) {
    EXPECT_THAT(refusal(original, {{"model_type", type}, {"mm_vision_tower", "google/siglip"}}),
                AllOf(HasSubstr("\"model_type\" is \"" + std::string(type) + "\""),
                      Not(HasSubstr("--tower"))));
  }
  for (const char* key : {"mm_image_tower", "mm_video_tower"}) {
    EXPECT_THAT(refusal(original, {{key, "LanguageBind/LanguageBind_Image"}}),
                AllOf(HasSubstr("\"" + std::string(key) + "\""), HasSubstr("is not supported"),
                      Not(HasSubstr("--tower"))));
  }
  const auto nested = CopyOf("tiny-llava", folder);
  // What the folder has is not what the settings make of it.
  const json larger = {{"num_hidden_layers", 24}};
  EXPECT_THAT(refusal(nested, {{"vision_config", larger}}), HasSubstr("missing:"));
  EXPECT_THAT(refusal(nested, {{"model_type", "video_llava"}, {"vision_config", larger}}),
              AllOf(HasSubstr("\"model_type\" is \"video_llava\""), Not(HasSubstr("missing:"))));
  EXPECT_THAT(refusal(nested, {{"text_config", {{"model_type", "qwen2"}}},
                               {"vision_config", {{"model_type", "siglip_vision_model"}}}}),
              HasSubstr("text_config: \"model_type\" is \"qwen2\""));
}

TEST(CheckpointConfigTest, ReadsWhatOtherWritersMean) {
  const TempFolder folder;
  const auto path = CopyOf("tiny-llava", folder);
  const LanguageConfig before = OpenLanguage(path).config;
  EXPECT_EQ(before.features.image_mode, ImageMode::kCrop);
  EXPECT_EQ(before.features.select_feature, SelectFeature::kPatch);
  EditJson(path / "config.json", [](json& config) {
    auto& text = config["text_config"];
    text["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};
    text.erase("rope_theta");
    text["eos_token_id"] = json::array({2});
    config["vision_feature_select_strategy"] = "full";
  });
  EditJson(path / "preprocessor_config.json", [](json& config) {
    config["do_pad"] = true;
    config["crop_size"] = config["crop_size"]["height"];
    config["size"] = config["size"]["shortest_edge"];
  });
  const LanguageConfig after = OpenLanguage(path).config;
  EXPECT_EQ(after.decoder.rope_theta, 5e5);
  EXPECT_EQ(after.decoder.eos_token_id, 2);
  EXPECT_EQ(after.features.select_feature, SelectFeature::kClsPatch);
  EXPECT_EQ(after.features.image_mode, ImageMode::kPad);
}

const std::vector<Resolution> kCanvases = {{56, 112}, {112, 56}, {112, 112}, {168, 56}, {56, 168}};

TEST(CheckpointConfigTest, ReadsTilesOfBothLayouts) {
  const TempFolder folder;
  const auto nested = WriteTinyNext(folder.path() / "nested");
  const auto original = WriteOriginalNext(folder.path() / "original");
  for (const auto& path : {nested, original}) {
    const LanguageCheckpoint checkpoint = OpenLanguage(path);
    EXPECT_EQ(checkpoint.config.features.image_mode, ImageMode::kAnyres);
    EXPECT_EQ(checkpoint.config.features.grid, kCanvases) << path;
    EXPECT_EQ(checkpoint.config.features.tile_size, 56);
    EXPECT_TRUE(checkpoint.tensors.tensors().contains("model.image_newline"));
  }
  EditJson(original / "config.json", [](json& config) {
    config["image_grid_pinpoints"] = "[(56, 112), (112, 56), (112, 112), (168, 56), [56, 168]]";
  });
  EXPECT_EQ(OpenLanguage(original).config.features.grid, kCanvases);
  // Newer processors pad tiles; that is not the mode "pad".
  EditJson(nested / "preprocessor_config.json", [](json& config) {
    config["do_pad"] = true;
    config["image_grid_pinpoints"] = {{112, 56}, {56, 112}, {112, 112}, {56, 168}, {168, 56}};
  });
  EXPECT_EQ(OpenLanguage(nested).config.features.grid, kCanvases);
}

TEST(CheckpointConfigTest, RefusesTilesByName) {
  const TempFolder folder;
  const auto pairs = [](int width, int height) { return json::array({{width, height}}); };
  const auto nested = WriteTinyNext(folder.path() / "nested");
  ExpectRefusals(nested, "config.json",
                 {{"/use_image_newline_parameter", false, "use_image_newline_parameter"},
                  {"/image_grid_pinpoints", json::array(), "no list of pairs"},
                  {"/image_grid_pinpoints", json::array({56, 112}), "no list of pairs"},
                  {"/image_grid_pinpoints", pairs(0, 56), "no list of pairs"},
                  {"/image_grid_pinpoints", pairs(1 << 30, 56), "no list of pairs"},
                  {"/image_grid_pinpoints", pairs(57, 112), "a canvas of 112 x 57"},
                  {"/image_grid_pinpoints", pairs(56 * 37, 56), "a canvas of 56 x 2072"},
                  {"/vision_feature_select_strategy", "full", "class token"}});
  ExpectRefusals(nested, "preprocessor_config.json",
                 {{"/image_grid_pinpoints", pairs(56, 56), "is not that of config.json"}});
  const auto original = WriteOriginalNext(folder.path() / "original");
  ExpectRefusals(original, "config.json",
                 {{"/mm_patch_merge_type", "spatial", "mm_patch_merge_type"},
                  {"/mm_patch_merge_type", nullptr, "mm_patch_merge_type"},
                  {"/image_grid_pinpoints", nullptr, "image_grid_pinpoints"},
                  {"/image_grid_pinpoints", "(1x1),...,(6x6)", "image_grid_pinpoints"},
                  {"/image_grid_pinpoints", "[(56, 112)", "image_grid_pinpoints"},
                  {"/image_aspect_ratio", "pad", "mm_patch_merge_type"}});
  EditJson(original / "config.json", [](json& config) {
    config["image_aspect_ratio"] = "pad";
    config["mm_patch_merge_type"] = "flat";
  });
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(original); }), HasSubstr("surplus: model.image_newline"));
  WriteBytes(nested / "model.safetensors",
             ReadBytes(FixturesDir() / "tiny-llava" / "model.safetensors"));
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(nested); }),
              HasSubstr("missing: model.image_newline [96]"));
}

// In a window of W tokens all sequences of at most W tokens are as without.
TEST(CheckpointConfigTest, MistralsContextEndsWithItsWindow) {
  const TempFolder folder;
  const auto path = CopyOf("tiny-llava", folder);
  const auto set = [&](const json& changes) {
    EditJson(path / "config.json", [&](json& config) {
      auto& text = config["text_config"];
      text["model_type"] = "mistral";
      text["max_position_embeddings"] = 8192;
      text["rope_theta"] = 1e6;
      text.erase("sliding_window");
      text.update(changes);
    });
  };
  struct Case {
    json changes;
    int64_t context;
    const char* chat_template;
  };
  for (const auto& [changes, context, chat_template] :
       std::vector<Case>{{{{"sliding_window", nullptr}}, 8192, "mistral_instruct"},  // LLaVA-1.6
                         {{{"sliding_window", 8192}}, 8192, "v1"},
                         {{{"sliding_window", 9000}}, 8192, "v1"},
                         {{{"sliding_window", 8191}}, 8191, "v1"},
                         {json::object(), 4096, "v1"}}) {  // BakLLaVA
    set(changes);
    const LanguageCheckpoint checkpoint = OpenLanguage(path);
    EXPECT_EQ(checkpoint.chat_template->name(), chat_template) << changes;
    const DecoderConfig& decoder = checkpoint.config.decoder;
    EXPECT_EQ(decoder.max_position_embeddings, context) << changes;
    EXPECT_EQ(decoder.num_kv_heads, 2);
    EXPECT_EQ(decoder.rope_theta, 1e6);
  }
  for (const json& wrong : {json(0), json(-1), json("wide")}) {
    set({{"sliding_window", wrong}});
    EXPECT_THAT(ErrorOf([&] { OpenLanguage(path); }), HasSubstr("\"sliding_window\" is "));
  }
}

// What llava-hf/llava-v1.6-mistral-7b-hf leaves out is the default of another family.
TEST(CheckpointConfigTest, FillsInMistralsDefaults) {
  const TempFolder folder;
  const JsonObject config(json::parse(R"({"model_type": "llava_next", "text_config":
    {"model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
     "rope_theta": 1000000.0, "sliding_window": null, "vocab_size": 32064}})"),
                          "config.json");
  const LanguageConfig language = ReadHfLanguage(config, folder.path(), VisionConfig());
  EXPECT_EQ(language.decoder.intermediate_size, 14336);
  EXPECT_EQ(language.decoder.num_kv_heads, 8);
  EXPECT_EQ(language.features.tile_size, 336);
  ASSERT_EQ(language.features.grid.size(), 5u);
  EXPECT_EQ(language.features.grid[0], (Resolution{672, 336}));
  EXPECT_NO_THROW(CheckPair(language, VisionConfig(), "x"));
}

// llava-hf/llava-1.5-7b-hf leaves out whatever is transformers' default.
TEST(CheckpointConfigTest, FillsInTransformersDefaults) {
  const TempFolder folder;
  const JsonObject config(json::parse(R"({"model_type": "llava", "image_token_index": 32000,
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
    "vocab_size": 32064}})"),
                          "config.json");
  const LanguageConfig language = ReadHfLanguage(config, folder.path(), VisionConfig());
  EXPECT_EQ(language.decoder.hidden_size, 4096);
  EXPECT_EQ(language.decoder.intermediate_size, 11008);
  EXPECT_EQ(language.decoder.num_kv_heads, 32);
  EXPECT_EQ(language.decoder.head_dim, 128);
  EXPECT_FALSE(language.decoder.tie_word_embeddings);
  EXPECT_NO_THROW(CheckConfig(language, "x"));
  const auto tower = PublishedTower("openai/clip-vit-large-patch14");
  ASSERT_TRUE(tower.has_value());
  EXPECT_EQ(tower->num_patches(), 256);
  EXPECT_EQ(PublishedTower("openai/clip-vit-large-patch14-336")->num_patches(), 576);
}

TEST(CheckpointConfigTest, OwnSchemaIsExact) {
  VisionConfig vision;
  vision.layer_norm_eps = 1.0 / 3;
  vision.activation = Activation::kGelu;
  vision.preprocess.mean = {0.1f, 1.0f / 3, 0.48145466f};
  const json written = ToJson(vision);
  const VisionConfig read = ReadVisionConfig(JsonObject(json::parse(written.dump()), "x"));
  EXPECT_EQ(ToJson(read), written);
  EXPECT_EQ(read.preprocess.mean, vision.preprocess.mean);
  EXPECT_EQ(read.layer_norm_eps, vision.layer_norm_eps);

  LanguageConfig language;
  language.decoder.rope_theta = 1e6 / 7;
  language.decoder.tie_word_embeddings = true;
  language.projector.depth = 1;
  language.features = {ImageMode::kCrop, 3, SelectFeature::kClsPatch};
  const json text = ToJson(language, 577);
  int64_t patches = 0;
  const LanguageConfig again =
      ReadLanguageConfig(JsonObject(json::parse(text.dump()), "x"), patches);
  EXPECT_EQ(patches, 577);
  EXPECT_EQ(ToJson(again, patches), text);

  language.features = {ImageMode::kAnyres, -2, SelectFeature::kPatch, kCanvases, 56};
  const json tiles = ToJson(language, 16);
  const LanguageConfig tiled =
      ReadLanguageConfig(JsonObject(json::parse(tiles.dump()), "x"), patches);
  EXPECT_EQ(ToJson(tiled, patches), tiles);
  EXPECT_EQ(tiled.features.grid, kCanvases);
  EXPECT_THAT(ErrorOf([&] {
                json odd = tiles;
                odd["tower_patches"] = 17;
                ReadLanguageConfig(JsonObject(odd, "c.json"), patches);
              }),
              HasSubstr("17 patches"));
  json wide = text;
  wide["decoder"]["eos_token_id"] = (int64_t{1} << 32) + 2;
  EXPECT_THAT(ErrorOf([&] { ReadLanguageConfig(JsonObject(wide, "c.json"), patches); }),
              HasSubstr("\"eos_token_id\" is 4294967298"));
  for (const char* key : {"grid", "tile_size"}) {
    EXPECT_FALSE(text["features"].contains(key)) << "old digests would change";
    json without = tiles;
    without["features"].erase(key);
    EXPECT_THAT(ErrorOf([&] { ReadLanguageConfig(JsonObject(without, "c.json"), patches); }),
                HasSubstr(key));
  }

  json missing = text;
  missing["decoder"].erase("rope_theta");
  EXPECT_THAT(ErrorOf([&] { ReadLanguageConfig(JsonObject(missing, "c.json"), patches); }),
              AllOf(HasSubstr("c.json"), HasSubstr("rope_theta")));
  json newer = written;
  newer["format_version"] = 9;
  EXPECT_THAT(ErrorOf([&] { ReadVisionConfig(JsonObject(newer, "c.json")); }),
              HasSubstr("format_version"));
}

TEST(ProjectorConfigTest, TypeAndDepthAgree) {
  for (const char* type : {"linear", "mlp2x_gelu", "mlp3x_gelu", "mlp16x_gelu"}) {
    EXPECT_EQ((ProjectorConfig{ProjectorConfig::DepthOf(type), 1, 1}.type()), type);
  }
  EXPECT_EQ(ProjectorConfig::DepthOf("mlp1x_gelu"), 1);
  for (const char* type : {"", "mlp", "mlpx_gelu", "mlp0x_gelu", "mlp-1x_gelu", "mlp2x_gelu ",
                           "mlp2x_relu", "mlp99999999999999999999x_gelu", "identity", "Linear"}) {
    EXPECT_THROW(ProjectorConfig::DepthOf(type), std::invalid_argument) << type;
  }
}

}  // namespace
}  // namespace llava
