#include "server/vision/feature_file.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "server/runtime/crc32c.h"
#include "server/wire/feature_key.h"

namespace llava {
namespace {

constexpr std::string_view kMagic = "LLVFEAT1";
constexpr char kSuffix[] = ".feature";

// Little-endian, as the machines this runs on.
struct Fixed {
  char magic[8];
  uint32_t key_bytes;
  uint32_t image_width, image_height;
  uint32_t data_crc32c;
  int64_t rows, width;
  uint64_t data_bytes;
};
static_assert(sizeof(Fixed) == 48);

constexpr size_t kNameDigits = 32;  // of each digest

}  // namespace

std::string FeatureFilePrefix(std::string_view picture) {
  return ToHex(HashBytes(std::string(picture))).substr(0, kNameDigits) + "-";
}

std::string FeatureFileName(const std::string& key) {
  return absl::StrCat(FeatureFilePrefix(PictureOfKey(key)),
                      ToHex(HashBytes(key)).substr(0, kNameDigits), kSuffix);
}

std::string FeatureFilePrefixOf(const std::string& name) { return name.substr(0, kNameDigits + 1); }

bool IsFeatureFile(const std::string& name) {
  return name.ends_with(kSuffix) && name.find('-') == kNameDigits &&
         name.size() == 2 * kNameDigits + std::strlen(kSuffix) + 1;
}

std::string FeatureFile(const Features& features) {
  Fixed fixed{};
  std::memcpy(fixed.magic, kMagic.data(), sizeof(fixed.magic));
  fixed.key_bytes = static_cast<uint32_t>(features.key.size());
  fixed.image_width = features.image_width;
  fixed.image_height = features.image_height;
  fixed.data_crc32c = features.crc32c;
  fixed.rows = features.rows;
  fixed.width = features.width;
  fixed.data_bytes = features.bytes.size();
  std::string file(reinterpret_cast<const char*>(&fixed), sizeof(fixed));
  file += features.key;
  const uint32_t crc = Crc32c(file);
  file.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  file += features.bytes;
  return file;
}

std::shared_ptr<const Features> ParseFeatureFile(std::string_view file, const std::string& key) {
  Fixed fixed{};
  const size_t head = sizeof(fixed) + key.size();
  if (file.size() < head + sizeof(uint32_t)) return nullptr;
  std::memcpy(&fixed, file.data(), sizeof(fixed));
  uint32_t crc = 0;
  std::memcpy(&crc, file.data() + head, sizeof(crc));
  const std::string_view data = file.substr(head + sizeof(crc));
  if (std::string_view(fixed.magic, sizeof(fixed.magic)) != kMagic ||
      fixed.key_bytes != key.size() || file.substr(sizeof(fixed), key.size()) != key ||
      crc != Crc32c(file.substr(0, head)) || fixed.data_bytes != data.size() || fixed.rows < 1 ||
      fixed.width < 1 ||
      static_cast<uint64_t>(fixed.rows) > data.size() / static_cast<uint64_t>(fixed.width) ||
      static_cast<uint64_t>(fixed.rows * fixed.width) * 2 != data.size() ||
      fixed.data_crc32c != Crc32c(data)) {
    return nullptr;
  }
  auto features = std::make_shared<Features>();
  features->key = key;
  features->bytes = data;
  features->rows = fixed.rows;
  features->width = fixed.width;
  features->crc32c = fixed.data_crc32c;
  features->image_width = fixed.image_width;
  features->image_height = fixed.image_height;
  return features;
}

}  // namespace llava
