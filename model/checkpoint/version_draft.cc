#include "model/checkpoint/version_draft.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/tensor_file.h"
#include "model/checkpoint/version_folder.h"
#include "model/text/json_text.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// What the manifest says about the files of a folder, by several threads.
std::map<std::string, Manifest::File> FilesOf(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::vector<Manifest::File> files(paths.size());
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < paths.size(); i = next++) {
      files[i] = {fs::file_size(paths[i]), HashFile(paths[i].string())};
    }
  };
  std::vector<std::future<void>> others;
  const size_t threads = std::min<size_t>(paths.size(), std::thread::hardware_concurrency());
  for (size_t i = 1; i < threads; ++i) others.push_back(std::async(std::launch::async, work));
  work();
  for (std::future<void>& other : others) other.get();
  std::map<std::string, Manifest::File> listed;
  for (size_t i = 0; i < paths.size(); ++i) listed[paths[i].filename().string()] = files[i];
  return listed;
}

// Throws std::invalid_argument unless it can be read back from a manifest.
void CheckRecipe(const std::string& recipe) {
  try {
    ParseJson<nlohmann::json>(recipe);
    ParseJson<nlohmann::json>("{\"recipe\": " + recipe + "}");  // a level deeper
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("the recipe is not JSON that a manifest can hold: ") +
                                error.what());
  }
}

}  // namespace

VersionDraft::VersionDraft(const fs::path& root, const std::string& name, const std::string& recipe)
    : name_(name), recipe_(recipe) {
  CheckModelName(name);
  CheckRecipe(recipe);
  model_folder_ = root / name;
  made_model_folder_ = !fs::exists(model_folder_);
  path_ = model_folder_ / (kDraftPrefix + RandomName());
  try {
    // Another writer that fails takes the model's empty folder away again.
    for (int attempt = 1; !lock_; ++attempt) {
      fs::create_directories(model_folder_);
      try {
        lock_.emplace(LockPath(), std::chrono::milliseconds(0));
      } catch (const std::runtime_error&) {
        if (attempt == 10 || fs::exists(model_folder_)) throw;
      }
    }
    fs::create_directory(path_);
  } catch (const fs::filesystem_error& error) {
    Remove();
    throw std::runtime_error(error.path1().string() + ": cannot create: " + error.code().message());
  } catch (...) {
    Remove();
    throw;
  }
}

fs::path VersionDraft::LockPath() const { return path_.string() + kDraftLockSuffix; }

VersionDraft::~VersionDraft() {
  if (!path_.empty()) Remove();
}

void VersionDraft::Remove() const {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  fs::remove(LockPath(), ignored);
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
  manifest.files = FilesOf(path_);
  for (uint64_t version = NewestVersion(model_folder_).value_or(0) + 1;; ++version) {
    manifest.version = version;
    WriteDurably(path_ / "manifest.json", manifest.ToJson());
    const fs::path target = model_folder_ / std::to_string(version);
    if (!RenameNewFolder(path_, target)) continue;
    const fs::path lock = LockPath();
    path_.clear();  // published: an error from here on takes nothing back
    SyncFolder(model_folder_);
    const fs::path root = model_folder_.parent_path();
    if (made_model_folder_) SyncFolder(root.empty() ? "." : root);
    std::error_code ignored;
    fs::remove(lock, ignored);
    return target;
  }
}

}  // namespace llava
