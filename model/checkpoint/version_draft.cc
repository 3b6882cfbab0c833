#include "model/checkpoint/version_draft.h"

#include <fcntl.h>
#include <stdio.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/tensor_file.h"

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

}  // namespace

VersionDraft::VersionDraft(const fs::path& root, const std::string& name, const std::string& recipe)
    : name_(name), recipe_(recipe) {
  CheckName(name);
  if (!nlohmann::json::accept(recipe)) {
    throw std::invalid_argument("the recipe is not JSON: " + recipe);
  }
  model_folder_ = root / name;
  made_model_folder_ = !fs::exists(model_folder_);
  path_ = model_folder_ / (".tmp-" + RandomName());
  fs::create_directories(path_);
}

VersionDraft::~VersionDraft() {
  if (path_.empty()) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  if (made_model_folder_) fs::remove(model_folder_, ignored);  // not if somebody else is in it
}

void VersionDraft::AddSelfTest(const std::optional<SelfTest>& self_test, Manifest& manifest) {
  if (!self_test) return;
  SaveSafetensors(path_ / kSelfTestFile, self_test->tensors);
  manifest.self_test_tolerances = self_test->tolerances;
}

fs::path VersionDraft::Publish(Manifest manifest) {
  manifest.name = name_;
  manifest.recipe = recipe_;
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

bool VersionDraft::RenameNew(const fs::path& target) const {
  if (renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) == 0) {
    return true;
  }
  // File systems without that flag: a rename over a folder fails unless that folder is empty, and
  // versions never are.
  if (errno == EINVAL && rename(path_.c_str(), target.c_str()) == 0) return true;
  if (errno == EEXIST || errno == ENOTEMPTY) return false;
  throw std::runtime_error(target.string() + ": cannot publish: " + std::strerror(errno));
}

}  // namespace llava
