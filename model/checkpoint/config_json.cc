#include "model/checkpoint/config_json.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "model/config/picture_shape.h"

namespace llava {
namespace {

using nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr const char* kTowerFormat = "llava-tower";
constexpr const char* kLanguageFormat = "llava-language";
constexpr const char* kQuantMethod = "llava-serving";

// Far above every published model; keeps products of sizes within 64 bits.
constexpr int64_t kMaxWidth = 1 << 20, kMaxLayers = 1024, kMaxVocabulary = 1 << 24;

const char* ToString(Activation activation) {
  return activation == Activation::kGelu ? "gelu" : "quick_gelu";
}

const char* ToString(ImageMode mode) {
  switch (mode) {
    case ImageMode::kCrop:
      return "crop";
    case ImageMode::kPad:
      return "pad";
    case ImageMode::kAnyres:
      break;
  }
  return "anyres";
}

json ToJson(const FeatureConfig& features) {
  json object = {
      {"image_mode", ToString(features.image_mode)},
      {"select_layer", features.select_layer},
      {"select_feature", features.select_feature == SelectFeature::kPatch ? "patch" : "cls_patch"}};
  if (features.image_mode != ImageMode::kAnyres) return object;
  json& grid = object["grid"] = json::array();
  for (const Resolution& canvas : features.grid) grid.push_back({canvas.width, canvas.height});
  object["tile_size"] = features.tile_size;
  return object;
}

FeatureConfig ReadFeatures(const JsonObject& object) {
  FeatureConfig features;
  const std::string mode = object.Text("image_mode"), select = object.Text("select_feature");
  if (mode == "anyres") {
    features.image_mode = ImageMode::kAnyres;
    features.grid = ReadGrid(object, "grid", /*height_first=*/false);
    features.tile_size = object.Int("tile_size");
  } else if (mode == "pad" || mode == "crop") {
    features.image_mode = mode == "pad" ? ImageMode::kPad : ImageMode::kCrop;
  } else {
    object.Fail("image_mode", "is none of crop, pad and anyres");
  }
  if (select != "patch" && select != "cls_patch") {
    object.Fail("select_feature", "is neither patch nor cls_patch");
  }
  features.select_feature = select == "patch" ? SelectFeature::kPatch : SelectFeature::kClsPatch;
  features.select_layer = object.Int("select_layer");
  return features;
}

void CheckFormat(const JsonObject& file, const std::string& format) {
  if (file.Text("format") != format) file.Fail("format", "is not \"" + format + "\"");
  if (file.Int("format_version") != kFormatVersion) {
    file.Fail("format_version", "is " + std::to_string(file.Int("format_version")) +
                                    "; this program reads " + std::to_string(kFormatVersion));
  }
}

Quantization ReadQuantization(const JsonObject& object) {
  if (object.Text("quant_method") != kQuantMethod) {
    object.Fail("quant_method",
                "is \"" + object.Text("quant_method") + "\", this program reads " + kQuantMethod);
  }
  return {object.Text("format"), object.Int("group"), object.Text("layout")};
}

[[noreturn]] void Refuse(const std::string& where, const std::string& what) {
  throw std::runtime_error(where + ": " + what);
}

void CheckRange(const std::string& where, const char* name, int64_t value, int64_t max) {
  if (value < 1 || value > max) {
    Refuse(where, std::string(name) + " is " + std::to_string(value) + ", 1 to " +
                      std::to_string(max) + " is allowed");
  }
}

void CheckDivides(const std::string& where, const char* what, int64_t value, const char* by,
                  int64_t divisor) {
  if (value % divisor != 0) {
    Refuse(where, std::string(what) + " " + std::to_string(value) + " is not a multiple of " + by +
                      " " + std::to_string(divisor));
  }
}

void CheckPositive(const std::string& where, const char* name, double value) {
  if (!(value > 0)) Refuse(where, std::string(name) + " has to be greater than 0");
}

}  // namespace

json ToJson(const VisionConfig& config) {
  const PreprocessConfig& preprocess = config.preprocess;
  return {{"format", kTowerFormat},
          {"format_version", kFormatVersion},
          {"vision",
           {{"hidden_size", config.hidden_size},
            {"intermediate_size", config.intermediate_size},
            {"num_layers", config.num_layers},
            {"num_heads", config.num_heads},
            {"image_size", config.image_size},
            {"patch_size", config.patch_size},
            {"num_channels", config.num_channels},
            {"layer_norm_eps", config.layer_norm_eps},
            {"activation", ToString(config.activation)},
            {"preprocess",
             {{"image_size", preprocess.image_size},
              {"mean", preprocess.mean},
              {"std", preprocess.std}}}}}};
}

json ToJson(const LanguageConfig& config, int64_t tower_patches) {
  const DecoderConfig& decoder = config.decoder;
  json file = {{"format", kLanguageFormat},
               {"format_version", kFormatVersion},
               {"decoder",
                {{"hidden_size", decoder.hidden_size},
                 {"intermediate_size", decoder.intermediate_size},
                 {"num_layers", decoder.num_layers},
                 {"num_heads", decoder.num_heads},
                 {"num_kv_heads", decoder.num_kv_heads},
                 {"head_dim", decoder.head_dim},
                 {"vocab_size", decoder.vocab_size},
                 {"max_position_embeddings", decoder.max_position_embeddings},
                 {"rms_norm_eps", decoder.rms_norm_eps},
                 {"rope_theta", decoder.rope_theta},
                 {"tie_word_embeddings", decoder.tie_word_embeddings},
                 {"bos_token_id", decoder.bos_token_id},
                 {"eos_token_id", decoder.eos_token_id}}},
               {"projector",
                {{"type", config.projector.type()},
                 {"in_width", config.projector.in_width},
                 {"out_width", config.projector.out_width}}},
               {"features", ToJson(config.features)},
               {"tower_patches", tower_patches}};
  if (const auto& quantization = decoder.quantization) {
    file["quantization_config"] = {{"quant_method", kQuantMethod},
                                   {"format", quantization->format},
                                   {"group", quantization->group},
                                   {"layout", quantization->layout}};
  }
  return file;
}

Activation ReadActivation(const JsonObject& object, const std::string& key,
                          std::optional<std::string> fallback) {
  const std::string name = object.Text(key, std::move(fallback));
  if (name == "quick_gelu") return Activation::kQuickGelu;
  if (name == "gelu") return Activation::kGelu;
  object.Fail(key, "is \"" + name + "\"; supported are quick_gelu and gelu");
}

std::array<float, 3> ReadColour(const JsonObject& object, const std::string& key) {
  const std::vector<double> numbers = object.Numbers(key);
  if (numbers.size() != 3) object.Fail(key, "is not a list of three numbers");
  std::array<float, 3> colour;
  std::transform(numbers.begin(), numbers.end(), colour.begin(),
                 [](double number) { return static_cast<float>(number); });
  return colour;
}

int32_t TokenId(const JsonObject& object, const std::string& key, int64_t id) {
  const auto narrow = static_cast<int32_t>(id);
  if (narrow != id) object.Fail(key, "is " + std::to_string(id) + ", token ids have 32 bits");
  return narrow;
}

std::vector<Resolution> ReadGrid(const JsonObject& object, const std::string& key,
                                 bool height_first) {
  const json& value = object.At(key);
  const auto fail = [&] { object.Fail(key, "is " + value.dump() + ", no list of pairs of sides"); };
  json list = value;
  if (value.is_string()) {
    auto text = value.get<std::string>();  // Python's: pairs may stand in round brackets
    std::replace(text.begin(), text.end(), '(', '[');
    std::replace(text.begin(), text.end(), ')', ']');
    list = json::parse(text, nullptr, /*allow_exceptions=*/false);
  }
  if (!list.is_array() || list.empty()) fail();
  std::vector<Resolution> grid;
  for (const json& pair : list) {
    if (!pair.is_array() || pair.size() != 2) fail();
    for (const json& side : pair) {
      if (!side.is_number_integer() || side < 1 || side > kMaxWidth) fail();
    }
    const int first = pair[0].get<int>(), second = pair[1].get<int>();
    grid.push_back(height_first ? Resolution{second, first} : Resolution{first, second});
  }
  return grid;
}

VisionConfig ReadVisionConfig(const JsonObject& file) {
  CheckFormat(file, kTowerFormat);
  const JsonObject vision = file.Object("vision");
  const JsonObject preprocess = vision.Object("preprocess");
  VisionConfig config;
  config.hidden_size = vision.Int("hidden_size");
  config.intermediate_size = vision.Int("intermediate_size");
  config.num_layers = vision.Int("num_layers");
  config.num_heads = vision.Int("num_heads");
  config.image_size = vision.Int("image_size");
  config.patch_size = vision.Int("patch_size");
  config.num_channels = vision.Int("num_channels");
  config.layer_norm_eps = vision.Number("layer_norm_eps");
  config.activation = ReadActivation(vision, "activation");
  config.preprocess.image_size = preprocess.Int("image_size");
  config.preprocess.mean = ReadColour(preprocess, "mean");
  config.preprocess.std = ReadColour(preprocess, "std");
  CheckConfig(config, "config.json");
  return config;
}

LanguageConfig ReadLanguageConfig(const JsonObject& file, int64_t& tower_patches) {
  CheckFormat(file, kLanguageFormat);
  LanguageConfig config;
  const JsonObject decoder = file.Object("decoder");
  config.decoder.hidden_size = decoder.Int("hidden_size");
  config.decoder.intermediate_size = decoder.Int("intermediate_size");
  config.decoder.num_layers = decoder.Int("num_layers");
  config.decoder.num_heads = decoder.Int("num_heads");
  config.decoder.num_kv_heads = decoder.Int("num_kv_heads");
  config.decoder.head_dim = decoder.Int("head_dim");
  config.decoder.vocab_size = decoder.Int("vocab_size");
  config.decoder.max_position_embeddings = decoder.Int("max_position_embeddings");
  config.decoder.rms_norm_eps = decoder.Number("rms_norm_eps");
  config.decoder.rope_theta = decoder.Number("rope_theta");
  config.decoder.tie_word_embeddings = decoder.Bool("tie_word_embeddings");
  config.decoder.bos_token_id = TokenId(decoder, "bos_token_id", decoder.Int("bos_token_id"));
  config.decoder.eos_token_id = TokenId(decoder, "eos_token_id", decoder.Int("eos_token_id"));

  const JsonObject projector = file.Object("projector");
  try {
    config.projector.depth = ProjectorConfig::DepthOf(projector.Text("type"));
  } catch (const std::invalid_argument& error) {
    projector.Fail("type", error.what());
  }
  config.projector.in_width = projector.Int("in_width");
  config.projector.out_width = projector.Int("out_width");

  config.features = ReadFeatures(file.Object("features"));
  tower_patches = file.Int("tower_patches");
  CheckRange("config.json", "tower_patches", tower_patches, kMaxWidth);
  if (file.Has("quantization_config")) {
    config.decoder.quantization = ReadQuantization(file.Object("quantization_config"));
  }
  CheckConfig(config, "config.json");
  CheckPictures(config, tower_patches, "config.json");
  return config;
}

void CheckConfig(const VisionConfig& config, const std::string& where) {
  CheckRange(where, "the tower's hidden size", config.hidden_size, kMaxWidth);
  CheckRange(where, "the tower's inner size", config.intermediate_size, kMaxWidth);
  CheckRange(where, "the tower's number of layers", config.num_layers, kMaxLayers);
  CheckRange(where, "the tower's number of heads", config.num_heads, kMaxWidth);
  CheckRange(where, "the tower's image size", config.image_size, 1 << 14);
  CheckRange(where, "the tower's patch size", config.patch_size, config.image_size);
  CheckDivides(where, "the tower's hidden size", config.hidden_size, "its heads", config.num_heads);
  CheckPositive(where, "layer_norm_eps", config.layer_norm_eps);
  if (config.num_channels != 3) {
    Refuse(where, "the tower has " + std::to_string(config.num_channels) +
                      " colour channels, 3 are supported");
  }
  if (config.preprocess.image_size != config.image_size) {
    Refuse(where, "pictures are prepared with " + std::to_string(config.preprocess.image_size) +
                      " pixels a side, the tower wants " + std::to_string(config.image_size));
  }
  for (const float deviation : config.preprocess.std) CheckPositive(where, "image std", deviation);
}

void CheckConfig(const LanguageConfig& config, const std::string& where) {
  const DecoderConfig& decoder = config.decoder;
  CheckRange(where, "the decoder's hidden size", decoder.hidden_size, kMaxWidth);
  CheckRange(where, "the decoder's inner size", decoder.intermediate_size, kMaxWidth);
  CheckRange(where, "the decoder's number of layers", decoder.num_layers, kMaxLayers);
  CheckRange(where, "the decoder's number of heads", decoder.num_heads, kMaxWidth);
  CheckRange(where, "the decoder's number of key/value heads", decoder.num_kv_heads,
             decoder.num_heads);
  CheckRange(where, "the decoder's head size", decoder.head_dim, kMaxWidth);
  CheckRange(where, "the vocabulary", decoder.vocab_size, kMaxVocabulary);
  CheckRange(where, "max_position_embeddings", decoder.max_position_embeddings, INT32_MAX);
  CheckDivides(where, "the decoder's number of heads", decoder.num_heads, "its key/value heads",
               decoder.num_kv_heads);
  CheckDivides(where, "the decoder's head size", decoder.head_dim, "a rotated pair of", 2);
  CheckPositive(where, "rms_norm_eps", decoder.rms_norm_eps);
  CheckPositive(where, "rope_theta", decoder.rope_theta);
  for (const int32_t id : {decoder.bos_token_id, decoder.eos_token_id}) {
    if (id < 0 || id >= decoder.vocab_size) {
      Refuse(where, "token id " + std::to_string(id) + " is outside the vocabulary of " +
                        std::to_string(decoder.vocab_size));
    }
  }
  if (const auto& quantization = decoder.quantization) {
    const std::string& format = quantization->format;
    const int64_t group = quantization->group;
    const bool known = format == "bf16" ? group == 0
                                        : (format == "int8" || format == "int4") &&
                                              (group == 32 || group == 64 || group == 128);
    if (!known) {
      Refuse(where, "the quantisation " + quantization->Describe() +
                        " is not known: bf16, int8 and int4 in groups of 32, 64 or 128 are");
    }
  }
  CheckRange(where, "the projector's input width", config.projector.in_width, kMaxWidth);
  if (config.projector.out_width != decoder.hidden_size) {
    Refuse(where, "the projector gives " + std::to_string(config.projector.out_width) +
                      " values, the decoder reads " + std::to_string(decoder.hidden_size));
  }
}

void CheckPictures(const LanguageConfig& config, int64_t tower_patches, const std::string& where) {
  try {
    PictureShape(config.features, tower_patches);
  } catch (const std::invalid_argument& error) {
    Refuse(where, error.what());
  }
}

void CheckPair(const LanguageConfig& config, const VisionConfig& tower, const std::string& where) {
  if (config.projector.in_width != tower.hidden_size) {
    Refuse(where, "the projector reads " + std::to_string(config.projector.in_width) +
                      " values a patch, the tower gives " + std::to_string(tower.hidden_size));
  }
  const int64_t layer = config.features.select_layer, states = tower.num_layers + 1;
  if (layer < -states || layer >= states) {
    Refuse(where, "vision layer " + std::to_string(layer) + " is wanted, the tower has " +
                      std::to_string(states) + " hidden states");
  }
  if (config.features.image_mode == ImageMode::kAnyres &&
      config.features.tile_size != tower.image_size) {
    Refuse(where, "pictures come in tiles of " + std::to_string(config.features.tile_size) +
                      " pixels, the tower sees " + std::to_string(tower.image_size));
  }
  CheckPictures(config, tower.num_patches(), where);
}

}  // namespace llava
