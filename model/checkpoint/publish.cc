#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/language_draft.h"
#include "model/checkpoint/version_draft.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

std::map<std::string, at::Tensor> AllOf(const TensorSource& tensors) {
  std::map<std::string, at::Tensor> all;
  for (const auto& [name, info] : tensors.tensors()) all[name] = tensors.Get(name);
  return all;
}

}  // namespace

fs::path PublishTower(const TowerCheckpoint& checkpoint, const fs::path& root,
                      const std::string& name, const std::string& recipe) {
  Manifest manifest;
  manifest.kind = Manifest::Kind::kTower;
  manifest.tower_digest = checkpoint.digest;
  if (checkpoint.in_repository && checkpoint.name == name) {
    manifest.parent_version = checkpoint.version;
  }
  VersionDraft draft(root, name, recipe);
  SaveSafetensors(draft.path() / "model.safetensors", AllOf(checkpoint.tensors),
                  {{"format", "pt"}});
  WriteDurably(draft.path() / "config.json", ToJson(checkpoint.config).dump(2) + "\n");
  draft.AddSelfTest(checkpoint.self_test, manifest);
  return draft.Publish(std::move(manifest));
}

fs::path PublishLanguage(const LanguageCheckpoint& checkpoint, const fs::path& root,
                         const std::string& name, const std::string& recipe) {
  LanguageDraft draft(root, name, recipe);
  draft.Add(AllOf(checkpoint.tensors));
  return draft.Publish(checkpoint);
}

}  // namespace llava
