#include "model/checkpoint/hf_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "model/checkpoint/mapped_tensor.h"

namespace llava {
namespace {

using nlohmann::json;

constexpr std::string_view kPadMark = "<pad>";

// As torch calls it.
const char* DtypeWord(at::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : dtype == at::kHalf ? "float16" : "bfloat16";
}

bool IsAnyres(const LanguageCheckpoint& language) {
  return language.config.features.image_mode == ImageMode::kAnyres;
}

const char* SelectStrategy(const LanguageCheckpoint& language) {
  return language.config.features.select_feature == SelectFeature::kPatch ? "default" : "full";
}

const char* ProcessorClass(const LanguageCheckpoint& language) {
  return IsAnyres(language) ? "LlavaNextProcessor" : "LlavaProcessor";
}

// Here the height comes first.
json GridOf(const FeatureConfig& features) {
  json grid = json::array();
  for (const Resolution& canvas : features.grid) grid.push_back({canvas.height, canvas.width});
  return grid;
}

json VisionConfigOf(const VisionConfig& config) {
  return {{"model_type", "clip_vision_model"},
          {"hidden_size", config.hidden_size},
          {"intermediate_size", config.intermediate_size},
          {"num_hidden_layers", config.num_layers},
          {"num_attention_heads", config.num_heads},
          {"image_size", config.image_size},
          {"patch_size", config.patch_size},
          {"num_channels", config.num_channels},
          {"layer_norm_eps", config.layer_norm_eps},
          {"hidden_act", config.activation == Activation::kGelu ? "gelu" : "quick_gelu"},
          {"projection_dim", config.hidden_size}};  // of no tensor here, but never 0
}

json TextConfigOf(const LanguageCheckpoint& language, const HfTokens& tokens) {
  const DecoderConfig& config = language.config.decoder;
  json text = {{"model_type", "llama"},
               {"architectures", {"LlamaForCausalLM"}},
               {"hidden_act", "silu"},
               {"attention_bias", false},
               {"mlp_bias", false},
               {"hidden_size", config.hidden_size},
               {"intermediate_size", config.intermediate_size},
               {"num_hidden_layers", config.num_layers},
               {"num_attention_heads", config.num_heads},
               {"num_key_value_heads", config.num_kv_heads},
               {"head_dim", config.head_dim},
               {"vocab_size", tokens.rows},
               {"max_position_embeddings", config.max_position_embeddings},
               {"rms_norm_eps", config.rms_norm_eps},
               {"rope_theta", config.rope_theta},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"bos_token_id", config.bos_token_id},
               {"eos_token_id", config.eos_token_id}};
  // Computes the same; the family tells which template such a model was taught.
  if (language.chat_template->name() == "mistral_instruct") {
    text["model_type"] = "mistral";
    text["architectures"] = {"MistralForCausalLM"};
    text["sliding_window"] = nullptr;
  }
  return text;
}

json ConfigOf(const LanguageCheckpoint& language, const TowerCheckpoint& tower,
              const HfTokens& tokens, at::ScalarType dtype) {
  const FeatureConfig& features = language.config.features;
  const bool anyres = IsAnyres(language);
  json config = {
      {"model_type", anyres ? "llava_next" : "llava"},
      {"architectures",
       {anyres ? "LlavaNextForConditionalGeneration" : "LlavaForConditionalGeneration"}},
      {"torch_dtype", DtypeWord(dtype)},
      {"ignore_index", -100},
      {"image_token_index", tokens.image},
      {"image_seq_length",
       language.tower_patches + (features.select_feature == SelectFeature::kClsPatch ? 1 : 0)},
      {"pad_token_id", tokens.pad},
      {"projector_hidden_act", "gelu"},
      {"multimodal_projector_bias", true},
      {"vision_feature_layer", features.select_layer},
      {"vision_feature_select_strategy", SelectStrategy(language)},
      {"tie_word_embeddings", language.config.decoder.tie_word_embeddings},
      {"text_config", TextConfigOf(language, tokens)},
      {"vision_config", VisionConfigOf(tower.config)}};
  if (anyres) {
    config["image_grid_pinpoints"] = GridOf(features);
    config["use_image_newline_parameter"] = true;
  }
  return config;
}

json PreprocessorOf(const LanguageCheckpoint& language, const VisionConfig& tower) {
  const PreprocessConfig& preprocess = tower.preprocess;
  const int64_t side = preprocess.image_size;
  json file = {{"processor_class", ProcessorClass(language)},
               {"do_convert_rgb", true},
               {"do_resize", true},
               {"size", {{"shortest_edge", side}}},
               {"resample", 3},  // bicubic
               {"do_center_crop", true},
               {"crop_size", {{"height", side}, {"width", side}}},
               {"do_rescale", true},
               {"rescale_factor", 1 / 255.0},
               {"do_normalize", true},
               {"image_mean", preprocess.mean},
               {"image_std", preprocess.std}};
  switch (language.config.features.image_mode) {
    case ImageMode::kCrop:
      file["image_processor_type"] = "CLIPImageProcessor";
      break;
    case ImageMode::kPad:
      file["image_processor_type"] = "LlavaImageProcessor";
      file["do_pad"] = true;
      break;
    case ImageMode::kAnyres:
      file["image_processor_type"] = "LlavaNextImageProcessor";
      file["do_pad"] = true;
      file["image_grid_pinpoints"] = GridOf(language.config.features);
      break;
  }
  return file;
}

json ProcessorOf(const LanguageCheckpoint& language, const VisionConfig& tower) {
  return {{"processor_class", ProcessorClass(language)},
          {"image_token", kImageMark},
          {"patch_size", tower.patch_size},
          {"vision_feature_select_strategy", SelectStrategy(language)},
          {"num_additional_image_tokens", 1}};  // the class token
}

// The tokenizer's class is the one that takes tokenizer.json as it is.
json TokenizerConfigOf(const LanguageCheckpoint& language, const HfTokens& tokens) {
  json config = json::parse(tokens.tokenizer->ConfigJson());
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["processor_class"] = ProcessorClass(language);
  // Before transformers 5 that class makes token_type_ids, too, which generate() refuses.
  config["model_input_names"] = {"input_ids", "attention_mask"};
  config["pad_token"] = kPadMark;
  config["image_token"] = kImageMark;
  config["padding_side"] = "left";
  config["model_max_length"] = language.config.decoder.max_position_embeddings;
  return config;
}

json GenerationOf(const LanguageCheckpoint& language, const HfTokens& tokens) {
  // Texts that end an answer are ids where they are pieces of their own.
  std::vector<int32_t> ends = {tokens.tokenizer->eos_id()};
  for (const std::string& stop : language.chat_template->stop()) {
    const int32_t id = tokens.tokenizer->IdOf(stop);
    if (id >= 0 && tokens.tokenizer->IsSpecial(id) && id != ends[0]) ends.push_back(id);
  }
  json file = {{"pad_token_id", tokens.pad}};
  if (tokens.tokenizer->bos_id() >= 0) file["bos_token_id"] = tokens.tokenizer->bos_id();
  file["eos_token_id"] = ends.size() == 1 ? json(ends[0]) : json(ends);
  return file;
}

}  // namespace

HfTokens HfTokensOf(const LanguageCheckpoint& language) {
  const Tokenizer& own = *language.tokenizer;
  TokenizerOptions options = own.options();
  // The stretches around a picture begin as the whole does, even those that begin with a space; in
  // llava-hf only those behind any special token do, and this normalization alone adds to a space.
  if (!options.image_inline && !options.legacy) {
    options.legacy = true;
    options.prefix_after_special = true;
  }
  options.image_inline = true;
  int32_t next = own.vocab_size();
  HfTokens tokens;
  for (const auto& [mark, id] : {std::pair(kImageMark, &tokens.image), {kPadMark, &tokens.pad}}) {
    *id = own.IdOf(mark);
    if (*id < 0) *id = next++;
    options.added_tokens.emplace_back(std::string(mark), *id);
  }
  tokens.tokenizer = std::make_shared<const Tokenizer>(own.model_bytes(), std::move(options));
  const int64_t there = language.config.decoder.vocab_size;
  tokens.rows = next <= there ? there : (next + int64_t{63}) / 64 * 64;
  return tokens;
}

void CheckHfCanHold(const LanguageCheckpoint& language) {
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error(language.name + ": " + what);
  };
  if (const auto& packed = language.config.decoder.quantization) {
    fail("its decoder is packed for serving (" + packed->Describe() +
         "), which llava-hf has no layout for: export the checkpoint that it was made from");
  }
  const ProjectorConfig& projector = language.config.projector;
  if (projector.depth != 2) {
    fail("its projector is " + projector.type() +
         "; llava-hf knows mlp2x_gelu alone: train such a one (llava-train align, "
         "projector.type=mlp2x_gelu), or serve this one here");
  }
  // The other library counts added tokens on without gaps.
  const Tokenizer& tokenizer = *language.tokenizer;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.IsSpecial(id) && tokenizer.TokenBytes(id).empty()) {
      fail("its tokenizer has no token with the id " + std::to_string(id) +
           " but some behind it, which tokenizer.json cannot say: name one for it in "
           "added_tokens_decoder of tokenizer_config.json");
    }
  }
}

std::map<std::string, std::string> HfFiles(const LanguageCheckpoint& language,
                                           const TowerCheckpoint& tower, const HfTokens& tokens,
                                           at::ScalarType dtype) {
  const auto text = [](const json& value) { return value.dump(2) + "\n"; };
  return {{"config.json", text(ConfigOf(language, tower, tokens, dtype))},
          {"generation_config.json", text(GenerationOf(language, tokens))},
          {"preprocessor_config.json", text(PreprocessorOf(language, tower.config))},
          {"processor_config.json", text(ProcessorOf(language, tower.config))},
          {"tokenizer.model", std::string(tokens.tokenizer->model_bytes())},
          {"tokenizer.json", tokens.tokenizer->FastJson()},
          {"tokenizer_config.json", text(TokenizerConfigOf(language, tokens))},
          {"chat_template.jinja", language.chat_template->ToJinja()}};
}

}  // namespace llava
