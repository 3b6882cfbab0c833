#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <utility>
#include <vector>

namespace llava {

// The files of a checkpoint as they were before it was opened. They stay mapped, so that a worker
// which begins anew reads them again: as they were, even if they have been replaced or deleted
// since, but not if they were written to, because nobody has checked what they hold then.
class OpenedFiles {
 public:
  explicit OpenedFiles(const std::filesystem::path& folder);
  // Throws std::runtime_error if one was written to.
  void Check() const;

 private:
  std::vector<std::pair<std::filesystem::path, struct stat>> files_;
};

}  // namespace llava
