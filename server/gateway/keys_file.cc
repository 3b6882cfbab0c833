#include "server/gateway/keys_file.h"

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <ios>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

constexpr size_t kMaxFileBytes = 8u << 20;

absl::StatusOr<std::string> ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat("cannot read the keys file ", path, ": ", std::strerror(errno)));
  }
  std::string text;
  text.resize(kMaxFileBytes + 1);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (file.bad()) return absl::DataLossError(absl::StrCat("cannot read the keys file ", path));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has more than ", kMaxFileBytes, " bytes; is it a keys file?"));
  }
  return text;
}

}  // namespace

absl::StatusOr<std::vector<ApiKey>> ReadApiKeys(const std::string& path) {
  const auto text = ReadWhole(path);
  if (!text.ok()) {
    return absl::Status(text.status().code(),
                        absl::StrCat(text.status().message(), " (--keys-file)"));
  }
  auto keys = ParseApiKeys(*text);
  if (keys.ok()) return keys;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", keys.status().message(), " (--keys-file)"));
}

}  // namespace llava
