#include "server/wire/feature_key.h"

#include <cstdint>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace llava {
namespace {

constexpr size_t kDigestBytes = 32;
constexpr size_t kMaxNumericsBytes = 64;

// Little-endian, 4 bytes.
void AppendUint32(std::string& out, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(value >> shift));
}

absl::Status CheckDigest(const std::string& field, const std::string& bytes) {
  if (bytes.size() == kDigestBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", bytes.size(), " bytes, a SHA-256 has ", kDigestBytes));
}

}  // namespace

Sha256Digest SpecDigest(const v1::VisionSpec& spec) {
  std::string bytes = "llava.v1.VisionSpec";
  bytes.push_back('\0');
  AppendUint32(bytes, static_cast<uint32_t>(spec.tower_digest().size()));
  bytes += spec.tower_digest();
  AppendUint32(bytes, static_cast<uint32_t>(spec.image_mode()));
  AppendUint32(bytes, static_cast<uint32_t>(spec.grid_size()));
  for (const v1::GridPoint& point : spec.grid()) {
    AppendUint32(bytes, point.width());
    AppendUint32(bytes, point.height());
  }
  AppendUint32(bytes, static_cast<uint32_t>(spec.select_layer()));
  AppendUint32(bytes, static_cast<uint32_t>(spec.select_feature()));
  return HashBytes(bytes);
}

v1::FeatureKey MakeFeatureKey(const Sha256Digest& image_sha256, const v1::VisionSpec& spec,
                              const std::string& numerics) {
  v1::FeatureKey key;
  key.set_image_sha256(ToBytes(image_sha256));
  key.set_spec_digest(ToBytes(SpecDigest(spec)));
  key.set_numerics(numerics);
  return key;
}

absl::Status CheckFeatureKey(const v1::FeatureKey& key) {
  if (auto status = CheckDigest("FeatureKey.image_sha256", key.image_sha256()); !status.ok()) {
    return status;
  }
  if (auto status = CheckDigest("FeatureKey.spec_digest", key.spec_digest()); !status.ok()) {
    return status;
  }
  if (key.numerics().empty() || key.numerics().size() > kMaxNumericsBytes) {
    return absl::InvalidArgumentError(absl::StrCat("FeatureKey.numerics has ",
                                                   key.numerics().size(), " bytes, expected 1 to ",
                                                   kMaxNumericsBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckVisionSpec(const v1::VisionSpec& spec) {
  if (auto status = CheckDigest("VisionSpec.tower_digest", spec.tower_digest()); !status.ok()) {
    return status;
  }
  if (!v1::ImageMode_IsValid(spec.image_mode()) ||
      spec.image_mode() == v1::IMAGE_MODE_UNSPECIFIED) {
    return absl::InvalidArgumentError("VisionSpec.image_mode is not set to a known mode");
  }
  if (!v1::SelectFeature_IsValid(spec.select_feature()) ||
      spec.select_feature() == v1::SELECT_FEATURE_UNSPECIFIED) {
    return absl::InvalidArgumentError("VisionSpec.select_feature is not set to a known feature");
  }
  if ((spec.image_mode() == v1::IMAGE_MODE_ANYRES) != (spec.grid_size() > 0)) {
    return absl::InvalidArgumentError(
        "VisionSpec.grid belongs to IMAGE_MODE_ANYRES and must be empty otherwise");
  }
  return absl::OkStatus();
}

std::string FeatureKeyToBytes(const v1::FeatureKey& key) {
  return absl::StrCat(key.image_sha256(), key.spec_digest(), key.numerics());
}

v1::FeatureKey FeatureKeyFromBytes(const std::string& bytes) {
  v1::FeatureKey key;
  key.set_image_sha256(bytes.substr(0, kDigestBytes));
  key.set_spec_digest(bytes.substr(kDigestBytes, kDigestBytes));
  key.set_numerics(bytes.substr(2 * kDigestBytes));
  return key;
}

std::string_view PictureOfKey(std::string_view bytes) { return bytes.substr(0, kDigestBytes); }

absl::StatusOr<PictureSet> ReadDropped(
    const google::protobuf::RepeatedPtrField<std::string>& image_sha256) {
  if (image_sha256.size() > kMostDropped) {
    return absl::InvalidArgumentError(
        absl::StrCat("DropFeatures: image_sha256 names ", image_sha256.size(),
                     " pictures, at most ", kMostDropped, " are taken; send several requests"));
  }
  PictureSet pictures;
  for (const std::string& digest : image_sha256) {
    if (auto status = CheckDigest("DropFeatures: image_sha256", digest); !status.ok()) {
      return status;
    }
    pictures.insert(digest);
  }
  return pictures;
}

std::string FeatureKeyName(const v1::FeatureKey& key) {
  const auto short_hex = [](const std::string& bytes) {
    return absl::BytesToHexString(bytes.substr(0, 8));
  };
  return absl::StrCat(short_hex(key.image_sha256()), "/", short_hex(key.spec_digest()), "/",
                      key.numerics());
}

}  // namespace llava
