#include "model/checkpoint/version_folder.h"

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <system_error>

namespace llava {
namespace {

namespace fs = std::filesystem;

// A folder may go away while it is listed: somebody publishes or collects.
bool IsGone(const std::error_code& error) {
  return error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory ||
         error == std::error_code(ESTALE, std::generic_category());
}

}  // namespace

ModelPath::ModelPath(const fs::path& path) {
  const fs::path whole = fs::absolute(path).lexically_normal();
  const fs::path model = whole.has_filename() ? whole : whole.parent_path();
  root = model.parent_path();
  name = model.filename().string();
}

void CheckModelName(const std::string& name) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  if (name.empty() || name.size() > 128 || name[0] == '.' || name[0] == '-' ||
      name.find_first_not_of(kAllowed) != std::string::npos) {
    throw std::invalid_argument("\"" + name +
                                "\" is no model name: 1 to 128 letters, digits, '.', '_' and '-', "
                                "the first one a letter, a digit or '_'");
  }
}

std::optional<uint64_t> VersionNumber(std::string_view name) {
  uint64_t version = 0;
  const auto number = std::from_chars(name.data(), name.data() + name.size(), version);
  const bool whole = number.ec == std::errc() && number.ptr == name.data() + name.size();
  if (!whole || version == 0 || name[0] == '0') return std::nullopt;
  return version;
}

std::vector<std::string> NamesIn(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error && !IsGone(error)) {
    throw std::runtime_error(folder.string() + ": cannot list: " + error.message());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool HasManifest(const fs::path& version_folder) {
  std::error_code error;
  const bool there = fs::exists(version_folder / "manifest.json", error);
  return there || (error && !IsGone(error));
}

std::vector<uint64_t> CompleteVersions(const fs::path& model_folder) {
  std::vector<uint64_t> versions;
  for (const std::string& name : NamesIn(model_folder)) {
    const auto version = VersionNumber(name);
    if (!version) continue;
    if (HasManifest(model_folder / name)) versions.push_back(*version);
  }
  std::sort(versions.begin(), versions.end());
  return versions;
}

std::optional<uint64_t> NewestVersion(const fs::path& model_folder) {
  const std::vector<uint64_t> versions = CompleteVersions(model_folder);
  if (versions.empty()) return std::nullopt;
  return versions.back();
}

}  // namespace llava
