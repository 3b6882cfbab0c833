#pragma once

// Files that nobody but their owner may read.

#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

namespace llava {

// While it lives, what is made without a mode of its own is everybody's.
class OpenUmask {
 public:
  OpenUmask() : before_(umask(0)) {}
  ~OpenUmask() { umask(before_); }
  OpenUmask(const OpenUmask&) = delete;
  OpenUmask& operator=(const OpenUmask&) = delete;

 private:
  const mode_t before_;
};

// The folder and what is in it, as far as others may do anything with it.
inline std::vector<std::string> OpenToOthers(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  constexpr fs::perms kOthers = fs::perms::group_all | fs::perms::others_all;
  std::vector<std::string> found;
  const auto look = [&](const fs::path& path) {
    if ((fs::status(path).permissions() & kOthers) != fs::perms::none) found.push_back(path);
  };
  look(folder);
  for (const auto& entry : fs::recursive_directory_iterator(folder)) look(entry.path());
  return found;
}

}  // namespace llava
