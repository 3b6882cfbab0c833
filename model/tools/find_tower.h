#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint.h"

namespace llava {

struct TowerSearch {
  std::optional<std::filesystem::path> found;  // a version's folder
  std::vector<std::string> unknown;            // what could not be read, and why

  // "; not read: ..", if something was not.
  std::string NotRead() const;
};
// Looks for a tower with this digest in the repository. Other versions may be broken, or be removed
// meanwhile.
TowerSearch FindTower(const std::filesystem::path& root, const Sha256Digest& digest);

// The tower of a model that came without it: at `named`, if that is not empty, else in the
// repository. Throws std::runtime_error if it is another one or if there is none.
TowerCheckpoint OpenTowerOf(const LanguageCheckpoint& language, const std::filesystem::path& named,
                            const std::filesystem::path& repository);

}  // namespace llava
