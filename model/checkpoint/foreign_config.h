#pragma once

// config.json and preprocessor_config.json of published checkpoints. Defaults of missing keys are
// those of the programs that wrote the files (transformers, LLaVA). What we do not compute is
// refused by the name of its key, never ignored.

#include <filesystem>
#include <optional>
#include <string>

#include "model/checkpoint/json_object.h"
#include "model/config/model_config.h"

namespace llava {

// All throw std::runtime_error naming file and key; results are checked by CheckConfig.

// That the two layouts of LLaVA hold a model that can be computed here. Asked before the tower is
// looked for: nobody could name one for another family.
void CheckHfFamily(const JsonObject& config);
void CheckOriginalFamily(const JsonObject& config);

// So many tokens does attention see in a Mistral `config`, its own among them. Missing means the
// default of MistralConfig, null that there is no window.
std::optional<int64_t> MistralWindow(const JsonObject& config);

// Of a family that was checked. `tower`: the checkpoint's.
// llava-hf: nested text_config and vision_config. Of `llava` the image mode comes from
// preprocessor_config.json (`do_pad` of newer processors, else crop), if `folder` has one;
// `llava_next` is anyres.
LanguageConfig ReadHfLanguage(const JsonObject& config, const std::filesystem::path& folder,
                              const VisionConfig& tower);
// Original LLaVA: the keys of LLaMA or Mistral and mm_* beside each other.
LanguageConfig ReadOriginalLanguage(const JsonObject& config, const VisionConfig& tower);

// A language model that has no projector yet: what LLaVA-1.5 gave its own (mlp2x_gelu on the layer
// before the last, pictures padded).
LanguageConfig ReadDecoderAlone(const JsonObject& config, const VisionConfig& tower);

// A CLIP vision_config (or a config.json that is one), with preprocessor_config.json of `folder`.
VisionConfig ReadClip(const JsonObject& vision, const std::filesystem::path& folder);
// The towers that original checkpoints refer to by hub name; nothing for an unknown name.
std::optional<VisionConfig> PublishedTower(const std::string& hub_name);

}  // namespace llava
