#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace llava {

// Makes this process, as long as the object lives, somebody who meets permissions: root does not.
// What is in `folder` becomes that user's.
class Unprivileged {
 public:
  explicit Unprivileged(const std::filesystem::path& folder) : was_root_(geteuid() == 0) {
    if (!was_root_) return;
    constexpr uid_t kNobody = 65534;
    const auto give = [](const std::filesystem::path& path) {
      if (chown(path.c_str(), kNobody, kNobody) != 0) throw std::runtime_error("chown");
    };
    give(folder);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      give(entry.path());
    }
    if (seteuid(kNobody) != 0) throw std::runtime_error("seteuid");
  }
  ~Unprivileged() {
    if (was_root_ && seteuid(0) != 0) std::abort();
  }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;

 private:
  const bool was_root_;
};

}  // namespace llava
