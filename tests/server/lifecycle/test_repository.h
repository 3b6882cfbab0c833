#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "model/checkpoint/manifest.h"
#include "model/checkpoint/repository.h"
#include "model/digest/sha256.h"
#include "tests/support/temp_folder.h"

namespace llava {

// A model repository in a temporary folder, with versions that hold one small file.
class TestRepository {
 public:
  // A folder of its own that may not be there.
  std::filesystem::path root() const { return folder_.path() / "models"; }
  std::filesystem::path Folder(const std::string& name, uint64_t version) const {
    return root() / name / std::to_string(version);
  }

  // As publishing does: complete at once. `stored`: what the file holds if it is not what its
  // manifest says.
  void Publish(const std::string& name, uint64_t version, const std::string& content = "good",
               Manifest::Kind kind = Manifest::Kind::kLanguage,
               const std::string& stored = "") const {
    const std::filesystem::path draft = root() / name / ".tmp-test";
    std::filesystem::create_directories(draft);
    Manifest manifest;
    manifest.kind = kind;
    manifest.name = name;
    manifest.version = version;
    manifest.files["weights"] = {content.size(), HashBytes(content)};
    if (kind == Manifest::Kind::kLanguage) {
      manifest.projector_digest = manifest.decoder_digest = manifest.tokenizer_digest =
          Sha256Digest{};
    }
    Write(draft / "weights", stored.empty() ? content : stored);
    Write(draft / "manifest.json", manifest.ToJson());
    std::filesystem::rename(draft, Folder(name, version));
  }
  void Delete(const std::string& name, uint64_t version) const {
    std::filesystem::remove_all(Folder(name, version));
  }
  static void Write(const std::filesystem::path& path, const std::string& text) {
    WriteBytes(path, text);
  }
  ModelRepository repository() const { return ModelRepository(root()); }

 private:
  const TempFolder folder_;
};

}  // namespace llava
