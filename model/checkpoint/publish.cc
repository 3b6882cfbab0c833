#include <fcntl.h>
#include <stdio.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/content_digest.h"
#include "model/checkpoint/durable_file.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

void CheckName(const std::string& name) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  if (name.empty() || name.size() > 128 || name[0] == '.' || name[0] == '-' ||
      name.find_first_not_of(kAllowed) != std::string::npos) {
    throw std::invalid_argument("\"" + name +
                                "\" is no model name: 1 to 128 letters, digits, '.', '_' and '-', "
                                "the first one a letter, a digit or '_'");
  }
}

// A folder that nobody sees yet; removed unless published.
class Draft {
 public:
  explicit Draft(const fs::path& model_folder)
      : model_folder_(model_folder), path_(model_folder / (".tmp-" + RandomName())) {
    fs::create_directories(path_);
  }
  ~Draft() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  const fs::path& path() const { return path_; }

  // Takes the next free version: writes the manifest for it, then renames the whole folder.
  fs::path Publish(Manifest& manifest) {
    for (const auto& entry : fs::directory_iterator(path_)) {
      manifest.files[entry.path().filename().string()] = {entry.file_size(),
                                                          HashFile(entry.path().string())};
    }
    for (uint64_t version = NewestVersion(model_folder_).value_or(0) + 1;; ++version) {
      manifest.version = version;
      WriteDurably(path_ / "manifest.json", manifest.ToJson());
      const fs::path target = model_folder_ / std::to_string(version);
      if (!RenameNew(target)) continue;
      SyncFolder(model_folder_);
      path_.clear();
      return target;
    }
  }

 private:
  // False if `target` exists already.
  bool RenameNew(const fs::path& target) const {
    if (renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) == 0) {
      return true;
    }
    // File systems without that flag: a rename over a folder fails unless that folder is empty, and
    // versions never are.
    if (errno == EINVAL && rename(path_.c_str(), target.c_str()) == 0) return true;
    if (errno == EEXIST || errno == ENOTEMPTY) return false;
    throw std::runtime_error(target.string() + ": cannot publish: " + std::strerror(errno));
  }

  fs::path model_folder_, path_;
};

fs::path Publish(const fs::path& root, const std::string& name, Manifest manifest,
                 const TensorSource& tensors, const std::optional<SelfTest>& self_test,
                 const std::map<std::string, std::string>& other_files) {
  CheckName(name);
  if (!nlohmann::json::accept(manifest.recipe)) {
    throw std::invalid_argument("the recipe is not JSON: " + manifest.recipe);
  }
  manifest.name = name;
  Draft draft(root / name);
  std::map<std::string, at::Tensor> all;
  for (const auto& [tensor, info] : tensors.tensors()) all[tensor] = tensors.Get(tensor);
  SaveSafetensors(draft.path() / "model.safetensors", all, {{"format", "pt"}});
  if (self_test) {
    SaveSafetensors(draft.path() / kSelfTestFile, self_test->tensors);
    manifest.self_test_tolerances = self_test->tolerances;
  }
  for (const auto& [file, content] : other_files) WriteDurably(draft.path() / file, content);
  return draft.Publish(manifest);
}

}  // namespace

fs::path PublishTower(const TowerCheckpoint& checkpoint, const fs::path& root,
                      const std::string& name, const std::string& recipe) {
  Manifest manifest;
  manifest.kind = Manifest::Kind::kTower;
  manifest.tower_digest = checkpoint.digest;
  manifest.recipe = recipe;
  if (checkpoint.in_repository && checkpoint.name == name) {
    manifest.parent_version = checkpoint.version;
  }
  return Publish(root, name, std::move(manifest), checkpoint.tensors, checkpoint.self_test,
                 {{"config.json", ToJson(checkpoint.config).dump(2) + "\n"}});
}

fs::path PublishLanguage(const LanguageCheckpoint& checkpoint, const fs::path& root,
                         const std::string& name, const std::string& recipe) {
  Manifest manifest;
  manifest.kind = Manifest::Kind::kLanguage;
  manifest.tower_digest = checkpoint.tower_digest;
  manifest.projector_digest = DigestProjector(checkpoint.config, checkpoint.tensors);
  manifest.decoder_digest = DigestDecoder(checkpoint.config, checkpoint.tensors);
  manifest.tokenizer_digest = checkpoint.tokenizer->digest();
  manifest.recipe = recipe;
  if (checkpoint.in_repository && checkpoint.name == name) {
    manifest.parent_version = checkpoint.version;
  }
  const nlohmann::json config = ToJson(checkpoint.config, checkpoint.tower_patches);
  return Publish(root, name, std::move(manifest), checkpoint.tensors, checkpoint.self_test,
                 {{"config.json", config.dump(2) + "\n"},
                  {"tokenizer.model", std::string(checkpoint.tokenizer->model_bytes())},
                  {"tokenizer_config.json", checkpoint.tokenizer->ConfigJson()},
                  {"chat_template.json", checkpoint.chat_template->ToJson()}});
}

}  // namespace llava
