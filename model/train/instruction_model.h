#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/nn/low_rank.h"
#include "model/train/instruction_settings.h"
#include "model/train/run_start.h"

namespace llava {

// Tower and language model as a run of one of the stages starts from them.
struct InstructionModel {
  TowerCheckpoint tower;
  // With the projector and the features that the settings ask for.
  LanguageCheckpoint language;
  // What samples are written with; the language model's own, unless that would be of no use for
  // chats.
  std::shared_ptr<const ChatTemplate> chat_template;
  std::shared_ptr<const Tokenizer> tokenizer;
  RunStart start;  // what was opened for it
};

// A fresh projector fits any tower; one that is kept only the tower it was trained with. `began`:
// of a run that goes on. Throws std::invalid_argument for settings that do not fit together,
// std::runtime_error as OpenLanguage and OpenTower.
InstructionModel OpenInstructionModel(const InstructionSettings& settings, uint64_t seed,
                                      const std::optional<RunStart>& began = std::nullopt);

// Adapters for its decoder that add nothing yet: A as PEFT draws it, B zero. By the names of
// LowRankAdapters.
TensorSource FreshAdapters(const LanguageCheckpoint& language, int64_t rank, uint64_t seed);

// `checkpoint` with `trained` (name, value) in place of its own tensors, those in `dtype`; adapters
// among them are added to their matrices.
LanguageCheckpoint WithTrained(LanguageCheckpoint checkpoint,
                               const std::vector<std::pair<std::string, at::Tensor>>& trained,
                               const std::optional<LowRankOptions>& lora, at::ScalarType dtype);

}  // namespace llava
