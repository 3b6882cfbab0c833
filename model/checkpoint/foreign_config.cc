#include "model/checkpoint/foreign_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

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
    return list[0].get<int32_t>();
  }
  return static_cast<int32_t>(config.Int(key, fallback));
}

// LLaMA's keys; missing ones as in transformers' LlamaConfig.
DecoderConfig ReadLlama(const JsonObject& config) {
  const std::string activation = config.Text("hidden_act", "silu");
  if (activation != "silu") {
    config.Fail("hidden_act", "is \"" + activation + "\"; silu is supported");
  }
  for (const char* key : {"attention_bias", "mlp_bias", "quantization_config"}) {
    RefuseIfSet(config, key);
  }
  DecoderConfig decoder;
  decoder.hidden_size = config.Int("hidden_size", 4096);
  decoder.intermediate_size = config.Int("intermediate_size", 11008);
  decoder.num_layers = config.Int("num_hidden_layers", 32);
  decoder.num_heads = config.Int("num_attention_heads", 32);
  decoder.num_kv_heads = config.Int("num_key_value_heads", decoder.num_heads);
  decoder.vocab_size = config.Int("vocab_size", 32000);
  decoder.max_position_embeddings = config.Int("max_position_embeddings", 2048);
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

// A side given as a number or as an object with one of `keys`.
int64_t ReadSide(const JsonObject& config, const std::string& key,
                 const std::vector<std::string>& keys) {
  if (!config.At(key).is_object()) return config.Int(key);
  const JsonObject size = config.Object(key);
  std::optional<int64_t> side;
  for (const std::string& name : keys) {
    if (!size.Has(name)) continue;
    if (side && *side != size.Int(name)) config.Fail(key, "is not square");
    side = size.Int(name);
  }
  if (!side) config.Fail(key, "is " + config.At(key).dump() + ", which is not understood");
  return *side;
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
    preprocess.image_size = ReadSide(file, "crop_size", {"height", "width"});
  }
  if (file.Has("size") &&
      ReadSide(file, "size", {"shortest_edge", "height", "width"}) != preprocess.image_size) {
    file.Fail("size", "is not the side of crop_size, " + std::to_string(preprocess.image_size));
  }
  for (const auto& [key, colour] :
       {std::pair("image_mean", &preprocess.mean), std::pair("image_std", &preprocess.std)}) {
    if (!file.Has(key)) continue;
    const std::vector<double> numbers = file.Numbers(key);
    if (numbers.size() != 3) file.Fail(key, "is not a list of three numbers");
    for (size_t c = 0; c < 3; ++c) (*colour)[c] = static_cast<float>(numbers[c]);
  }
  return preprocess;
}

}  // namespace

LanguageConfig ReadHfLanguage(const JsonObject& config, const std::filesystem::path& folder,
                              int64_t vision_width) {
  const std::string type = config.Text("model_type", "");
  if (type != "llava") {
    config.Fail("model_type", "is \"" + type + "\"; of the nested layouts llava is supported");
  }
  RefuseIfSet(config, "quantization_config");
  const JsonObject text = config.Object("text_config");
  const std::string text_type = text.Text("model_type", "llama");
  if (text_type != "llama") {
    text.Fail("model_type", "is \"" + text_type + "\"; llama is supported");
  }
  LanguageConfig language;
  language.decoder = ReadLlama(text);
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
  language.projector = {2, vision_width, language.decoder.hidden_size};
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
  language.features.image_mode = ImageMode::kCrop;
  if (std::filesystem::exists(PreprocessorFile(folder)) &&
      JsonObject::Read(PreprocessorFile(folder)).Bool("do_pad", false)) {
    language.features.image_mode = ImageMode::kPad;
  }
  return language;
}

LanguageConfig ReadOriginalLanguage(const JsonObject& config) {
  const std::string type = config.Text("model_type", "");
  if (type != "llava_llama" && type != "llava" && type != "llama") {
    config.Fail("model_type", "is \"" + type + "\"; llava_llama, llava and llama are supported");
  }
  for (const char* key : {"s2", "mm_use_im_start_end", "mm_resampler_type"}) {
    RefuseIfSet(config, key);
  }
  const std::string merge = config.Text("mm_patch_merge_type", "flat");
  if (merge != "flat") {
    config.Fail("mm_patch_merge_type", "is \"" + merge + "\"; flat is supported");
  }
  LanguageConfig language;
  language.decoder = ReadLlama(config);
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

  const std::string aspect = config.Text("image_aspect_ratio", "square");
  if (aspect != "square" && aspect != "pad") {
    config.Fail("image_aspect_ratio", "is \"" + aspect + "\"; square and pad are supported");
  }
  language.features.image_mode = aspect == "pad" ? ImageMode::kPad : ImageMode::kCrop;
  language.features.select_layer = config.Int("mm_vision_select_layer");
  const std::string select = config.Text("mm_vision_select_feature", "patch");
  if (select != "patch" && select != "cls_patch") {
    config.Fail("mm_vision_select_feature", "is \"" + select + "\"; known: patch, cls_patch");
  }
  language.features.select_feature =
      select == "patch" ? SelectFeature::kPatch : SelectFeature::kClsPatch;
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
