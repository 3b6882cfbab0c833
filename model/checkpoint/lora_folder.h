#pragma once

// Folders of LoRA adapters as PEFT and LLaVA's training script write them: adapter_config.json,
// adapter_model.safetensors or .bin, and non_lora_trainables.bin with what was trained whole (the
// projector); config.json where LLaVA wrote them.

#include <filesystem>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"

namespace llava {

bool IsLoraFolder(const std::filesystem::path& path);

// The base with the adapter merged into it, as one checkpoint. The base is options.base, else the
// folder that the adapter names, seen from its own. Throws std::runtime_error as
// OpenCheckpointFolder, for what PEFT knows and we do not compute by the name of its setting, and
// for tensors that do not fit the base.
CheckpointFolder OpenLoraFolder(const std::filesystem::path& path, const OpenOptions& options);

}  // namespace llava
