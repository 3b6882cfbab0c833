#include "model/checkpoint/checkpoint_folder.h"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/checkpoint/lora_folder.h"
#include "model/checkpoint/tensor_names.h"
#include "model/checkpoint/verified_files.h"
#include "model/checkpoint/version_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void Fail(const fs::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what);
}

// That no file is read of which the manifest knows nothing.
void CheckListed(const fs::path& path, const Manifest& manifest) {
  std::vector<std::string> names = {"config.json"};
  const bool sharded = fs::exists(path / "model.safetensors.index.json");
  names.push_back(sharded ? "model.safetensors.index.json" : "model.safetensors");
  for (const char* name :
       {"tokenizer.model", "tokenizer_config.json", "added_tokens.json", "chat_template.json",
        "pytorch_model.bin.index.json", "pytorch_model.bin"}) {
    if (fs::exists(path / name)) names.emplace_back(name);
  }
  if (sharded) {
    const JsonObject index = JsonObject::Read(path / "model.safetensors.index.json");
    const JsonObject shards = index.Object("weight_map");
    for (const auto& [tensor, file] : shards.value().items()) names.push_back(shards.Text(tensor));
  }
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".safetensors") names.push_back(entry.path().filename());
  }
  for (const std::string& name : names) {
    if (!manifest.files.contains(name)) Fail(path, "its manifest does not list " + name);
  }
}

}  // namespace

fs::path ResolveCheckpoint(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) Fail(path, "is not a folder");
  if (fs::exists(path / "manifest.json") || fs::exists(path / "config.json") ||
      IsLoraFolder(path)) {
    return path;
  }
  if (const auto version = NewestVersion(path)) return path / std::to_string(*version);
  Fail(path, "is no checkpoint: it has neither manifest.json nor config.json nor a version folder");
}

Layout LayoutOf(const fs::path& path, const JsonObject& config) {
  if (fs::exists(path / "manifest.json")) return Layout::kRepository;
  if (config.Has("format") && config.At("format").is_string() &&
      config.Text("format").starts_with("llava-")) {
    Fail(path, "is a version of a model repository without its manifest.json");
  }
  const std::string type = config.Text("model_type", "");
  if (type.starts_with("clip")) return Layout::kClip;
  // Old original files have the model type "llava" too, but no nested settings.
  if (config.Has("text_config") && config.Has("vision_config")) return Layout::kLlavaHf;
  for (const char* key : {"mm_vision_tower", "mm_projector_type", "mm_hidden_size"}) {
    if (config.Has(key)) return Layout::kOriginal;
  }
  if (type == "llama" || type == "mistral") return Layout::kDecoder;
  config.Fail("model_type",
              "is \"" + type + "\" and nothing in the file tells a LLaVA model or a CLIP tower");
}

const char* ToString(Layout layout) {
  switch (layout) {
    case Layout::kRepository:
      return "repository";
    case Layout::kLlavaHf:
      return "llava-hf";
    case Layout::kOriginal:
      return "original LLaVA";
    case Layout::kClip:
      return "CLIP";
    case Layout::kDecoder:
      return "language model alone";
  }
  return "unknown";
}

std::string FolderName(const fs::path& path) { return ModelPath(path).name; }

CheckpointFolder OpenCheckpointFolder(const fs::path& path, bool verify) {
  OpenOptions options;
  options.verify = verify;
  return OpenCheckpointFolder(path, options);
}

CheckpointFolder OpenCheckpointFolder(const fs::path& given, const OpenOptions& options) {
  const fs::path path = ResolveCheckpoint(given);
  if (IsLoraFolder(path)) return OpenLoraFolder(path, options);
  if (!options.base.empty()) Fail(path, "is no LoRA adapter: no base can be named for it");
  std::optional<Manifest> manifest;
  TensorFiles opened;
  if (fs::exists(path / "manifest.json")) {
    manifest = Manifest::Read(path);
    CheckListed(path, *manifest);
    if (options.verify) opened = VerifyFiles(path, *manifest, options);
  }
  JsonObject config = JsonObject::Read(path / "config.json");
  const Layout layout = LayoutOf(path, config);
  if (fs::exists(path / "mm_projector.bin") && !fs::exists(path / "model.safetensors") &&
      !fs::exists(path / "pytorch_model.bin") &&
      !fs::exists(path / "model.safetensors.index.json") &&
      !fs::exists(path / "pytorch_model.bin.index.json")) {
    Fail(
        path,
        "holds a projector only; stage 2 begins with it (llava-train finetune, projector.from), or "
        "put it over a model that has one (llava-model publish --projector)");
  }
  std::shared_ptr<const TensorFile> file;
  try {
    file = OpenTensorFolder(path, opened);
  } catch (const std::exception&) {
    for (const auto& [name, checked] : opened) checked->Finish();  // as OpenBeingChecked
    throw;
  }
  CheckpointFolder folder{path, path, layout, std::move(config), std::move(manifest), file, {}, {}};
  for (const auto& [stored, info] : file->tensors()) {
    TensorName name{TensorName::Part::kLanguage, stored};
    if (layout == Layout::kRepository) {
      if (folder.manifest->kind == Manifest::Kind::kTower) name.part = TensorName::Part::kTower;
    } else {
      name = layout == Layout::kClip ? FromClipName(stored) : FromLlavaName(stored);
    }
    try {
      if (name.part == TensorName::Part::kTower) folder.tower.Add(name.canonical, file, stored);
      if (name.part == TensorName::Part::kLanguage) {
        folder.language.Add(name.canonical, file, stored);
      }
    } catch (const std::runtime_error& error) {
      Fail(path, error.what());
    }
  }
  return folder;
}

}  // namespace llava
