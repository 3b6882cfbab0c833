#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/json_object.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/tensor_file.h"

namespace llava {

// What a folder is, told by its content.
enum class Layout {
  kRepository,
  kLlavaHf,
  kOriginal,
  kClip,
  kDecoder,  // LLaMA (Vicuna) or Mistral, before it has a projector
};
// "repository", "llava-hf", "original LLaVA", "CLIP", "language model alone"
const char* ToString(Layout layout);

// An opened folder: settings read, tensors sorted into tower and language model under canonical
// names, nothing checked against each other yet.
struct CheckpointFolder {
  std::filesystem::path path;
  // Of a LoRA adapter the folder that it is merged into, else `path`.
  std::filesystem::path base;
  Layout layout;
  JsonObject config;                       // config.json
  std::optional<Manifest> manifest;        // kRepository
  std::shared_ptr<const TensorFile> file;  // of all tensors
  TensorSource tower, language;

  // And nothing else.
  bool is_tower() const {
    return manifest ? manifest->kind == Manifest::Kind::kTower : layout == Layout::kClip;
  }
};

// `path` itself if it is a checkpoint, else its newest version folder. Throws std::runtime_error if
// there is neither.
std::filesystem::path ResolveCheckpoint(const std::filesystem::path& path);

// Of ResolveCheckpoint(path). Throws std::runtime_error as that, and for layouts that are not
// known. A LoRA adapter comes merged into its base.
// `verify`: compare the files of a repository version with its manifest (VerifyFiles).
CheckpointFolder OpenCheckpointFolder(const std::filesystem::path& path, bool verify);
// Of `options`: verify, and how to read for it.
CheckpointFolder OpenCheckpointFolder(const std::filesystem::path& path,
                                      const OpenOptions& options);

// Of a folder with these settings. Throws std::runtime_error if it is none of ours.
Layout LayoutOf(const std::filesystem::path& path, const JsonObject& config);

// Calls `open`, which looks at what is in `folder`. What it finds wrong may come from damaged bytes
// that are still being checked (OpenOptions::in_memory): then that is thrown instead.
template <typename Open>
auto OpenBeingChecked(const TensorFile& file, const Open& open) {
  try {
    return open();
  } catch (const OpenStopped&) {
    throw;
  } catch (const std::exception&) {
    file.Finish();
    throw;
  }
}

// Name of a folder for messages and for checkpoints without a name of their own.
std::string FolderName(const std::filesystem::path& path);

}  // namespace llava
