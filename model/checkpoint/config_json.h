#pragma once

// config.json of a model repository version, and the checks that every configuration has to pass
// wherever it came from. Numbers are written so that reading gives the same bits.
//
// Tower:    {"format": "llava-tower", "format_version": 1,
//            "vision": {hidden_size, intermediate_size, num_layers, num_heads, image_size,
//                       patch_size, num_channels, layer_norm_eps,
//                       activation: "quick_gelu" | "gelu",
//                       preprocess: {image_size, mean: [3], std: [3]}}}
// Language: {"format": "llava-language", "format_version": 1,
//            "decoder": {hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads,
//                        head_dim, vocab_size, max_position_embeddings, rms_norm_eps, rope_theta,
//                        tie_word_embeddings, bos_token_id, eos_token_id},
//            "projector": {type: "linear" | "mlpNx_gelu", in_width, out_width},
//            "features": {image_mode: "crop" | "pad" | "anyres", select_layer,
//                         select_feature: "patch" | "cls_patch",
//                         grid: [[width, height] ...], tile_size (both of anyres only)},
//            "tower_patches": rows of Z_v without the class token,
//            "quantization_config": {"quant_method": "llava-serving", "format", "group", "layout"}
//              only where the decoder is packed for serving}
// All keys are required. Meanings and units: model/config/model_config.h.

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint/json_object.h"
#include "model/config/model_config.h"

namespace llava {

nlohmann::json ToJson(const VisionConfig& config);
nlohmann::json ToJson(const LanguageConfig& config, int64_t tower_patches);

// `file` is the whole config.json. Throw std::runtime_error naming file and key. Checked.
VisionConfig ReadVisionConfig(const JsonObject& file);
LanguageConfig ReadLanguageConfig(const JsonObject& file, int64_t& tower_patches);

// Sizes that fit together (heads divide widths, projector between tower and decoder ...). Throw
// std::runtime_error beginning with `where`.
void CheckConfig(const VisionConfig& config, const std::string& where);
void CheckConfig(const LanguageConfig& config, const std::string& where);
// That pictures can be counted in image tokens.
void CheckPictures(const LanguageConfig& config, int64_t tower_patches, const std::string& where);
// That the language model can read this tower.
void CheckPair(const LanguageConfig& config, const VisionConfig& tower, const std::string& where);

// "quick_gelu" or "gelu" of key `key`. Throws std::runtime_error for any other.
Activation ReadActivation(const JsonObject& object, const std::string& key,
                          std::optional<std::string> fallback = std::nullopt);
// Three numbers of key `key`, one for each colour.
std::array<float, 3> ReadColour(const JsonObject& object, const std::string& key);
// `id`, which key `key` says. Throws std::runtime_error if no decoder has so many; CheckConfig
// knows the vocabulary.
int32_t TokenId(const JsonObject& object, const std::string& key, int64_t id);
// Canvases: a list of pairs of sides in pixels, or a text that holds one as some published files
// have it. Throws std::runtime_error for anything else.
std::vector<Resolution> ReadGrid(const JsonObject& object, const std::string& key,
                                 bool height_first);

}  // namespace llava
