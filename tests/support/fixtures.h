#pragma once

// Where the parity fixtures lie: the folder LLAVA_FIXTURES names, else tests/fixtures of the tree.

#include <cstdlib>
#include <filesystem>

#include "tests/support/paths.h"

namespace llava {

inline std::filesystem::path FixturesDir() {
  const char* folder = std::getenv("LLAVA_FIXTURES");
  return folder && *folder ? std::filesystem::path(folder)
                           : std::filesystem::path(SourceDir()) / "tests" / "fixtures";
}

}  // namespace llava
