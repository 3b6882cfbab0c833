#include "server/wire/name_size.h"

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

constexpr size_t kMaxModelBytes = 256, kMaxLabelBytes = 64;

}  // namespace

absl::Status CheckBytes(absl::string_view field, size_t bytes, size_t limit) {
  if (bytes <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", bytes, " bytes, allowed are ", limit));
}

absl::Status CheckModelBytes(absl::string_view field, const std::string& name) {
  return CheckBytes(field, name.size(), kMaxModelBytes);
}

absl::Status CheckLabelBytes(absl::string_view field, const std::string& label) {
  return CheckBytes(field, label.size(), kMaxLabelBytes);
}

}  // namespace llava
