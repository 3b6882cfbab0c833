#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/file_lock.h"
#include "model/checkpoint/manifest.h"

namespace llava {

// A version of <root>/<name> that nobody sees yet: a folder to write files into, which goes away
// with the object unless it was published. A lock that it holds tells ModelRepository::Gc that its
// writer lives; what a killed writer leaves is nobody's version. One thread; any number of drafts
// of one model.
class VersionDraft {
 public:
  // Throws std::invalid_argument for a bad name or a recipe that is no JSON, or too deep for a
  // manifest, before anything is written; std::runtime_error if nothing can be written there.
  VersionDraft(const std::filesystem::path& root, const std::string& name,
               const std::string& recipe);
  ~VersionDraft();
  VersionDraft(const VersionDraft&) = delete;
  VersionDraft& operator=(const VersionDraft&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void AddSelfTest(const std::optional<SelfTest>& self_test, Manifest& manifest);
  // Takes the next free version: writes the manifest, to which it adds files, name, recipe and
  // version, and renames the whole folder, which it returns. Once.
  std::filesystem::path Publish(Manifest manifest);

 private:
  std::filesystem::path LockPath() const;
  // The folder with what is in it and its lock, as far as they can be removed.
  void Remove() const;

  std::string name_, recipe_;
  std::filesystem::path model_folder_, path_;  // path_: empty once published
  bool made_model_folder_;
  std::optional<FileLock> lock_;
};

}  // namespace llava
