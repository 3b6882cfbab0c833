#pragma once

// manifest.json of a version in the model repository <root>/<name>/<version>/: what the version is,
// the digest of each file, what it needs. Format: docs/formats.md.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "model/digest/sha256.h"

namespace llava {

inline constexpr int kManifestFormatVersion = 1;
inline constexpr const char* kSelfTestFile = "self_test.safetensors";

struct Manifest {
  enum class Kind { kTower, kLanguage };
  Kind kind = Kind::kLanguage;
  std::string name;
  uint64_t version = 0;
  struct File {
    uint64_t size_bytes = 0;
    Sha256Digest sha256{};
  };
  std::map<std::string, File> files;
  Sha256Digest tower_digest{};                   // own (tower) or required (language)
  std::optional<Sha256Digest> projector_digest;  // language only
  std::optional<Sha256Digest> decoder_digest;
  std::optional<Sha256Digest> tokenizer_digest;
  std::optional<uint64_t> parent_version;
  std::string recipe;  // how it was made, free JSON
  // Of kSelfTestFile, by arithmetic; empty: there is none.
  std::map<std::string, double> self_test_tolerances;
  Sha256Digest digest{};  // SHA-256 of manifest.json itself, not stored

  // Throws std::runtime_error naming the file and the key.
  static Manifest Read(const std::filesystem::path& folder);
  std::string ToJson() const;
};

}  // namespace llava
