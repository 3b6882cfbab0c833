#include "model/checkpoint/opened_files.h"

#include <stdexcept>
#include <system_error>

namespace llava {

OpenedFiles::OpenedFiles(const std::filesystem::path& folder) {
  std::error_code error;
  for (std::filesystem::directory_iterator each(folder, error), end; !error && each != end;
       each.increment(error)) {
    struct stat about {};
    if (stat(each->path().c_str(), &about) == 0 && S_ISREG(about.st_mode)) {
      files_.emplace_back(each->path(), about);
    }
  }
}

void OpenedFiles::Check() const {
  for (const auto& [path, before] : files_) {
    struct stat now {};
    const bool same =
        stat(path.c_str(), &now) == 0 && now.st_dev == before.st_dev && now.st_ino == before.st_ino;
    if (!same || (now.st_size == before.st_size && now.st_mtim.tv_sec == before.st_mtim.tv_sec &&
                  now.st_mtim.tv_nsec == before.st_mtim.tv_nsec)) {
      continue;
    }
    throw std::runtime_error(path.string() +
                             " was written to after it had been opened; replace files by renaming");
  }
}

}  // namespace llava
