#include "model/checkpoint/foreign_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "model/checkpoint/config_json.h"

namespace llava {
namespace {

void RefuseIfSet(const JsonObject& config, const std::string& key) {
  if (!config.Has(key)) return;
  const auto& value = config.At(key);
  const bool off = value == false || (value.is_object() && value.empty());
  if (!off) config.Fail(key, "is " + value.dump() + ", which is not supported");
}

// `rope_scaling`, or `rope_parameters` of newer files, which also holds the base.
double ReadRope(const JsonObject& config) {
  const double theta = config.Number("rope_theta", 10000.0);
  if (config.Has("rope_scaling")) {
    config.Fail("rope_scaling", "is " + config.At("rope_scaling").dump() +
                                    "; scaled rotary positions are not supported");
  }
  if (!config.Has("rope_parameters")) return theta;
  const JsonObject rope = config.Object("rope_parameters");
  const std::string type = rope.Text("rope_type", "default");
  if (type != "default") {
    rope.Fail("rope_type", "is \"" + type + "\"; scaled rotary positions are not supported");
  }
  return rope.Number("rope_theta", theta);
}

int32_t ReadTokenId(const JsonObject& config, const std::string& key, int32_t fallback) {
  if (config.Has(key) && config.At(key).is_array()) {
    const auto& list = config.At(key);
    if (list.size() != 1 || !list[0].is_number_integer()) {
      config.Fail(key, "is " + list.dump() + "; one id is supported");
    }
    return TokenId(config, key, list[0].get<int64_t>());
  }
  return TokenId(config, key, config.Int(key, fallback));
}

// The keys that LLaMA and Mistral have in common; missing ones as in `missing`, where 0 key/value
// heads stand for as many as heads.
DecoderConfig ReadDecoder(const JsonObject& config, const DecoderConfig& missing) {
  const std::string activation = config.Text("hidden_act", "silu");
  if (activation != "silu") {
    config.Fail("hidden_act", "is \"" + activation + "\"; silu is supported");
  }
  for (const char* key : {"attention_bias", "mlp_bias", "quantization_config"}) {
    RefuseIfSet(config, key);
  }
  DecoderConfig decoder;
  decoder.hidden_size = config.Int("hidden_size", 4096);
  decoder.intermediate_size = config.Int("intermediate_size", missing.intermediate_size);
  decoder.num_layers = config.Int("num_hidden_layers", 32);
  decoder.num_heads = config.Int("num_attention_heads", 32);
  decoder.num_kv_heads = config.Int(
      "num_key_value_heads", missing.num_kv_heads > 0 ? missing.num_kv_heads : decoder.num_heads);
  decoder.vocab_size = config.Int("vocab_size", 32000);
  decoder.max_position_embeddings =
      config.Int("max_position_embeddings", missing.max_position_embeddings);
  decoder.rms_norm_eps = config.Number("rms_norm_eps", 1e-6);
  decoder.rope_theta = ReadRope(config);
  decoder.tie_word_embeddings = config.Bool("tie_word_embeddings", false);
  decoder.bos_token_id = ReadTokenId(config, "bos_token_id", 1);
  decoder.eos_token_id = ReadTokenId(config, "eos_token_id", 2);
  if (config.Has("head_dim")) {
    decoder.head_dim = config.Int("head_dim");
  } else if (decoder.num_heads < 1 || decoder.hidden_size % decoder.num_heads != 0) {
    config.Fail("num_attention_heads", "is " + std::to_string(decoder.num_heads) +
                                           ", which does not divide hidden_size " +
                                           std::to_string(decoder.hidden_size));
  } else {
    decoder.head_dim = decoder.hidden_size / decoder.num_heads;
  }
  return decoder;
}

// As transformers' LlamaConfig.
DecoderConfig ReadLlama(const JsonObject& config) {
  DecoderConfig missing;
  missing.num_kv_heads = 0;
  return ReadDecoder(config, missing);
}

// As transformers' MistralConfig.
DecoderConfig ReadMistral(const JsonObject& config) {
  DecoderConfig missing;
  missing.intermediate_size = 14336;
  missing.num_kv_heads = 8;
  missing.max_position_embeddings = 4096 * 32;
  DecoderConfig decoder = ReadDecoder(config, missing);
  // A window changes nothing in sequences that fit into it.
  decoder.max_position_embeddings =
      std::min(decoder.max_position_embeddings,
               MistralWindow(config).value_or(decoder.max_position_embeddings));
  return decoder;
}

// The side of the square that is cut out.
int64_t ReadCrop(const JsonObject& file) {
  constexpr const char* kKey = "crop_size";
  if (!file.At(kKey).is_object()) return file.Int(kKey);
  const JsonObject size = file.Object(kKey);
  const int64_t side = size.Int("height");
  if (size.Int("width") != side) file.Fail(kKey, "is not square");
  return side;
}

// The length that the shorter side gets. With height and width transformers does not keep the
// shape.
int64_t ReadShortestEdge(const JsonObject& file) {
  constexpr const char* kKey = "size";
  if (!file.At(kKey).is_object()) return file.Int(kKey);
  const JsonObject size = file.Object(kKey);
  if (size.value().size() != 1 || !size.Has("shortest_edge")) {
    file.Fail(kKey, "is " + file.At(kKey).dump() +
                        "; shortest_edge alone is supported, which keeps a picture's shape");
  }
  return size.Int("shortest_edge");
}

std::filesystem::path PreprocessorFile(const std::filesystem::path& folder) {
  return folder / "preprocessor_config.json";
}

PreprocessConfig ReadPreprocess(const std::filesystem::path& folder, int64_t image_size) {
  PreprocessConfig preprocess;
  preprocess.image_size = image_size;
  if (!std::filesystem::exists(PreprocessorFile(folder))) return preprocess;
  const JsonObject file = JsonObject::Read(PreprocessorFile(folder));
  for (const char* step : {"do_resize", "do_center_crop", "do_rescale", "do_normalize"}) {
    if (!file.Bool(step, true)) file.Fail(step, "is false; pictures are always prepared this way");
  }
  constexpr int64_t kBicubic = 3;
  if (file.Int("resample", kBicubic) != kBicubic) {
    file.Fail("resample", "is not 3 (bicubic), the only filter that is supported");
  }
  if (std::abs(file.Number("rescale_factor", 1 / 255.0) * 255 - 1) > 1e-6) {
    file.Fail("rescale_factor", "is not 1/255");
  }
  if (file.Has("crop_size")) {
    preprocess.image_size = ReadCrop(file);
  }
  if (file.Has("size") && ReadShortestEdge(file) != preprocess.image_size) {
    file.Fail("size", "is not the side of crop_size, " + std::to_string(preprocess.image_size));
  }
  for (const auto& [key, colour] :
       {std::pair("image_mean", &preprocess.mean), std::pair("image_std", &preprocess.std)}) {
    if (file.Has(key)) *colour = ReadColour(file, key);
  }
  return preprocess;
}

// LLaVA-1.6 as transformers writes it: pairs with the height first.
void ReadNext(const JsonObject& config, const std::filesystem::path& folder,
              FeatureConfig& features) {
  constexpr const char* kGrid = "image_grid_pinpoints";
  features.image_mode = ImageMode::kAnyres;
  if (!config.Bool("use_image_newline_parameter", true)) {
    config.Fail("use_image_newline_parameter", "is false, which is not supported");
  }
  const JsonObject defaults(
      {{kGrid, {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}}}}, "defaults");
  features.grid = ReadGrid(config.Has(kGrid) ? config : defaults, kGrid, /*height_first=*/true);
  if (!std::filesystem::exists(PreprocessorFile(folder))) return;
  const JsonObject file = JsonObject::Read(PreprocessorFile(folder));
  if (file.Has(kGrid) && ReadGrid(file, kGrid, /*height_first=*/true) != features.grid) {
    file.Fail(kGrid, "is not that of config.json");
  }
}

ImageMode ModeOfProcessor(const std::filesystem::path& folder) {
  const bool pads = std::filesystem::exists(PreprocessorFile(folder)) &&
                    JsonObject::Read(PreprocessorFile(folder)).Bool("do_pad", false);
  return pads ? ImageMode::kPad : ImageMode::kCrop;
}

// image_aspect_ratio and what belongs to it.
void ReadAspect(const JsonObject& config, FeatureConfig& features) {
  const std::string aspect = config.Text("image_aspect_ratio", "square");
  if (aspect != "square" && aspect != "pad" && aspect != "anyres") {
    config.Fail("image_aspect_ratio",
                "is \"" + aspect + "\"; square, pad and anyres are supported");
  }
  const bool tiles = aspect == "anyres";
  const std::string merge = config.Text("mm_patch_merge_type", "flat");
  const std::string supported = tiles ? "spatial_unpad" : "flat";
  if (merge != supported) {
    config.Fail("mm_patch_merge_type", "is \"" + merge + "\"; with the image_aspect_ratio " +
                                           aspect + " " + supported + " is supported");
  }
  features.image_mode = tiles             ? ImageMode::kAnyres
                        : aspect == "pad" ? ImageMode::kPad
                                          : ImageMode::kCrop;
  if (tiles) features.grid = ReadGrid(config, "image_grid_pinpoints", /*height_first=*/false);
}

}  // namespace

std::optional<int64_t> MistralWindow(const JsonObject& config) {
  constexpr const char* kKey = "sliding_window";
  if (config.value().contains(kKey) && !config.Has(kKey)) return std::nullopt;
  const int64_t window = config.Int(kKey, 4096);
  if (window < 1) config.Fail(kKey, "is " + std::to_string(window) + ", no number of tokens");
  return window;
}

void CheckHfFamily(const JsonObject& config) {
  const std::string type = config.Text("model_type", "");
  if (type != "llava" && type != "llava_next") {
    config.Fail("model_type",
                "is \"" + type + "\"; of the nested layouts llava and llava_next are supported");
  }
  const JsonObject text = config.Object("text_config");
  const std::string text_type = text.Text("model_type", "llama");
  if (text_type != "llama" && text_type != "mistral") {
    text.Fail("model_type", "is \"" + text_type + "\"; llama and mistral are supported");
  }
}

void CheckOriginalFamily(const JsonObject& config) {
  const std::string type = config.Text("model_type", "");
  if (type != "llava_llama" && type != "llava" && type != "llama" && type != "llava_mistral") {
    config.Fail("model_type",
                "is \"" + type + "\"; llava_llama, llava, llama and llava_mistral are supported");
  }
  // mm_image_tower, mm_video_tower: Video-LLaVA.
  for (const char* key :
       {"mm_image_tower", "mm_video_tower", "s2", "mm_use_im_start_end", "mm_resampler_type"}) {
    RefuseIfSet(config, key);
  }
}

LanguageConfig ReadHfLanguage(const JsonObject& config, const std::filesystem::path& folder,
                              const VisionConfig& tower) {
  RefuseIfSet(config, "quantization_config");
  const JsonObject text = config.Object("text_config");
  LanguageConfig language;
  language.decoder =
      text.Text("model_type", "llama") == "mistral" ? ReadMistral(text) : ReadLlama(text);
  if (!text.Has("tie_word_embeddings")) {
    language.decoder.tie_word_embeddings = config.Bool("tie_word_embeddings", false);
  }
  const std::string activation = config.Text("projector_hidden_act", "gelu");
  if (activation != "gelu") {
    config.Fail("projector_hidden_act", "is \"" + activation + "\"; gelu is supported");
  }
  if (!config.Bool("multimodal_projector_bias", true)) {
    config.Fail("multimodal_projector_bias", "is false, which is not supported");
  }
  language.projector = {2, tower.hidden_size, language.decoder.hidden_size};
  if (config.Has("vision_feature_layer") && config.At("vision_feature_layer").is_array()) {
    config.Fail("vision_feature_layer", "is a list; one layer is supported");
  }
  language.features.select_layer = config.Int("vision_feature_layer", -2);
  const std::string select = config.Text("vision_feature_select_strategy", "default");
  if (select != "default" && select != "full") {
    config.Fail("vision_feature_select_strategy", "is \"" + select + "\"; known: default, full");
  }
  language.features.select_feature =
      select == "default" ? SelectFeature::kPatch : SelectFeature::kClsPatch;
  if (config.Text("model_type") == "llava_next") {
    ReadNext(config, folder, language.features);
    language.features.tile_size = tower.image_size;
  } else {
    language.features.image_mode = ModeOfProcessor(folder);
  }
  return language;
}

LanguageConfig ReadOriginalLanguage(const JsonObject& config, const VisionConfig& tower) {
  LanguageConfig language;
  language.decoder =
      config.Text("model_type") == "llava_mistral" ? ReadMistral(config) : ReadLlama(config);
  if (config.Has("max_sequence_length")) {
    language.decoder.max_position_embeddings =
        std::min(language.decoder.max_position_embeddings, config.Int("max_sequence_length"));
  }
  try {
    language.projector.depth = ProjectorConfig::DepthOf(config.Text("mm_projector_type", "linear"));
  } catch (const std::invalid_argument& error) {
    config.Fail("mm_projector_type", std::string("is wrong: ") + error.what());
  }
  language.projector.in_width = config.Int("mm_hidden_size");
  language.projector.out_width = language.decoder.hidden_size;

  ReadAspect(config, language.features);
  if (language.features.image_mode == ImageMode::kAnyres) {
    language.features.tile_size = tower.image_size;
  }
  language.features.select_layer = config.Int("mm_vision_select_layer");
  const std::string select = config.Text("mm_vision_select_feature", "patch");
  if (select != "patch" && select != "cls_patch") {
    config.Fail("mm_vision_select_feature", "is \"" + select + "\"; known: patch, cls_patch");
  }
  language.features.select_feature =
      select == "patch" ? SelectFeature::kPatch : SelectFeature::kClsPatch;
  return language;
}

LanguageConfig ReadDecoderAlone(const JsonObject& config, const VisionConfig& tower) {
  LanguageConfig language;
  language.decoder =
      config.Text("model_type") == "mistral" ? ReadMistral(config) : ReadLlama(config);
  language.projector = {2, tower.hidden_size, language.decoder.hidden_size};
  language.features.select_layer = -2;
  language.features.select_feature = SelectFeature::kPatch;
  language.features.image_mode = ImageMode::kPad;
  return language;
}

VisionConfig ReadClip(const JsonObject& vision, const std::filesystem::path& folder) {
  const std::string type = vision.Text("model_type", "clip_vision_model");
  if (type != "clip_vision_model") {
    vision.Fail("model_type", "is \"" + type + "\"; clip_vision_model is supported");
  }
  VisionConfig config;  // missing keys: transformers' CLIPVisionConfig
  config.hidden_size = vision.Int("hidden_size", 768);
  config.intermediate_size = vision.Int("intermediate_size", 3072);
  config.num_layers = vision.Int("num_hidden_layers", 12);
  config.num_heads = vision.Int("num_attention_heads", 12);
  config.image_size = vision.Int("image_size", 224);
  config.patch_size = vision.Int("patch_size", 32);
  config.num_channels = vision.Int("num_channels", 3);
  config.layer_norm_eps = vision.Number("layer_norm_eps", 1e-5);
  config.activation = ReadActivation(vision, "hidden_act", "quick_gelu");
  config.preprocess = ReadPreprocess(folder, config.image_size);
  return config;
}

std::optional<VisionConfig> PublishedTower(const std::string& hub_name) {
  VisionConfig config;  // ViT-L/14
  if (hub_name == "openai/clip-vit-large-patch14-336") return config;
  if (hub_name == "openai/clip-vit-large-patch14") {
    config.image_size = config.preprocess.image_size = 224;
    return config;
  }
  return std::nullopt;
}

}  // namespace llava
