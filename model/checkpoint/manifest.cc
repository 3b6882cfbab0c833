#include "model/checkpoint/manifest.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/json_object.h"

namespace llava {
namespace {

using nlohmann::json;

constexpr const char* kFileName = "manifest.json";

Sha256Digest ReadDigest(const JsonObject& object, const std::string& key) {
  try {
    return FromHex(object.Text(key));
  } catch (const std::invalid_argument&) {
    object.Fail(key, "is not 64 hex digits");
  }
}

std::optional<Sha256Digest> ReadOptionalDigest(const JsonObject& object, const std::string& key) {
  if (!object.Has(key)) return std::nullopt;
  return ReadDigest(object, key);
}

uint64_t ReadSize(const JsonObject& object, const std::string& key, int64_t least) {
  const int64_t value = object.Int(key);
  if (value < least) object.Fail(key, "is " + std::to_string(value));
  return static_cast<uint64_t>(value);
}

}  // namespace

Manifest Manifest::Read(const std::filesystem::path& folder) {
  const auto path = folder / kFileName;
  const std::string text = ReadSmallFile(path);
  const JsonObject object = JsonObject::Parse(text, path.string());
  if (object.Int("format_version") != kManifestFormatVersion) {
    object.Fail("format_version", "is " + std::to_string(object.Int("format_version")) +
                                      "; this program reads " +
                                      std::to_string(kManifestFormatVersion));
  }
  Manifest manifest;
  const std::string kind = object.Text("kind");
  if (kind != "tower" && kind != "language") object.Fail("kind", "is neither tower nor language");
  manifest.kind = kind == "tower" ? Kind::kTower : Kind::kLanguage;
  manifest.name = object.Text("name");
  manifest.version = ReadSize(object, "version", 1);
  const JsonObject files = object.Object("files");
  for (const auto& [name, value] : files.value().items()) {
    if (name.empty() || name == kFileName || std::filesystem::path(name).filename() != name ||
        name == "." || name == "..") {
      files.Fail(name, "is not a file of the version's folder");
    }
    const JsonObject file = files.Object(name);
    manifest.files[name] = {ReadSize(file, "size_bytes", 0), ReadDigest(file, "sha256")};
  }
  manifest.tower_digest = ReadDigest(object, "tower_digest");
  manifest.projector_digest = ReadOptionalDigest(object, "projector_digest");
  manifest.decoder_digest = ReadOptionalDigest(object, "decoder_digest");
  manifest.tokenizer_digest = ReadOptionalDigest(object, "tokenizer_digest");
  if (object.Has("parent_version")) manifest.parent_version = ReadSize(object, "parent_version", 1);
  if (object.Has("self_test")) {
    const JsonObject tolerances = object.Object("self_test");
    if (!manifest.files.contains(kSelfTestFile)) {
      object.Fail("self_test", std::string("has no file ") + kSelfTestFile);
    }
    for (const auto& [arithmetic, value] : tolerances.value().items()) {
      manifest.self_test_tolerances[arithmetic] = tolerances.Number(arithmetic);
    }
  }
  manifest.recipe = object.Has("recipe") ? object.At("recipe").dump() : "{}";
  manifest.digest = HashBytes(text);
  return manifest;
}

std::string Manifest::ToJson() const {
  json listed = json::object();
  for (const auto& [name, file] : files) {
    listed[name] = {{"size_bytes", file.size_bytes}, {"sha256", ToHex(file.sha256)}};
  }
  json object = {{"format_version", kManifestFormatVersion},
                 {"kind", kind == Kind::kTower ? "tower" : "language"},
                 {"name", name},
                 {"version", version},
                 {"files", listed},
                 {"tower_digest", ToHex(tower_digest)},
                 {"recipe", json::parse(recipe.empty() ? "{}" : recipe)}};
  if (projector_digest) object["projector_digest"] = ToHex(*projector_digest);
  if (decoder_digest) object["decoder_digest"] = ToHex(*decoder_digest);
  if (tokenizer_digest) object["tokenizer_digest"] = ToHex(*tokenizer_digest);
  if (!self_test_tolerances.empty()) object["self_test"] = self_test_tolerances;
  if (parent_version) object["parent_version"] = *parent_version;
  return object.dump(2) + "\n";
}

}  // namespace llava
