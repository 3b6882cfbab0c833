#pragma once

// Names and places in the model repository: <root>/<name>/<version>/. Needs no LibTorch.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

// Drafts of versions, <root>/<name>/.tmp-<random>, each beside a file that its living writer locks.
inline constexpr const char* kDraftPrefix = ".tmp-";
inline constexpr const char* kDraftLockSuffix = ".lock";

// Throws std::invalid_argument unless `name` is 1 to 128 letters, digits, '.', '_' and '-' and
// begins with a letter, a digit or '_'.
void CheckModelName(const std::string& name);

// <root>/<name> told as one path, with or without a slash behind it.
struct ModelPath {
  explicit ModelPath(const std::filesystem::path& path);

  std::filesystem::path root;
  std::string name;
};

// "12" -> 12; nothing for what is no version: "0", "007", "-3", ".tmp-1", "x".
std::optional<uint64_t> VersionNumber(std::string_view folder_name);

// Versions of <root>/<name> that have a manifest, ascending; none if there is no such folder. One
// whose folder may not be entered counts: opening it tells why it cannot be read. Throws
// std::runtime_error naming the model's folder if that cannot be listed.
std::vector<uint64_t> CompleteVersions(const std::filesystem::path& model_folder);
std::optional<uint64_t> NewestVersion(const std::filesystem::path& model_folder);

// Whether a version's folder has a manifest, or may not be looked into.
bool HasManifest(const std::filesystem::path& version_folder);

// Names in a folder, in order; none if it is not there. Throws std::runtime_error naming it.
std::vector<std::string> NamesIn(const std::filesystem::path& folder);

}  // namespace llava
