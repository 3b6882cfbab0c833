#include "model/tools/find_tower.h"

#include <cstdint>
#include <stdexcept>

#include "model/checkpoint/manifest.h"
#include "model/checkpoint/repository.h"

namespace llava {

namespace fs = std::filesystem;

std::string TowerSearch::NotRead() const {
  std::string text;
  for (const std::string& error : unknown) text += (text.empty() ? "; not read: " : ", ") + error;
  return text;
}

TowerSearch FindTower(const fs::path& root, const Sha256Digest& digest) {
  TowerSearch search;
  const ModelRepository repository(root);
  const auto look = [&search](const auto& read) {
    try {
      read();
    } catch (const std::runtime_error& error) {
      search.unknown.emplace_back(error.what());
    }
  };
  for (const std::string& name : repository.Models()) {
    std::vector<uint64_t> versions;
    look([&] { versions = repository.Versions(name); });
    for (const uint64_t version : versions) {
      const fs::path folder = repository.Folder(name, version);
      look([&] {
        const Manifest manifest = Manifest::Read(folder);
        const bool same =
            manifest.kind == Manifest::Kind::kTower && manifest.tower_digest == digest;
        if (same) search.found = folder;
      });
      if (search.found) return search;
    }
  }
  return search;
}

TowerCheckpoint OpenTowerOf(const LanguageCheckpoint& language, const fs::path& named,
                            const fs::path& repository) {
  if (!named.empty()) {
    TowerCheckpoint tower = OpenTower(named);
    if (tower.digest != language.tower_digest) {
      throw std::runtime_error(named.string() + ": is not the tower of this model: digest " +
                               ToHex(tower.digest) + ", expected " + ToHex(language.tower_digest));
    }
    return tower;
  }
  const TowerSearch there = FindTower(repository, language.tower_digest);
  if (!there.found) {
    throw std::runtime_error(
        repository.string() + ": has no tower with the digest " + ToHex(language.tower_digest) +
        ", which this model needs; name its folder with --tower" + there.NotRead());
  }
  return OpenTower(*there.found);
}

}  // namespace llava
