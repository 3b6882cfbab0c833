#pragma once

// Where the parity fixtures lie.

#include <cstdlib>
#include <filesystem>

#include "tests/support/paths.h"

namespace llava {

// Of this tree, for tests whose expected numbers lie in the tree too.
inline std::filesystem::path OwnFixturesDir() {
  return std::filesystem::path(SourceDir()) / "tests" / "fixtures";
}

// The folder that LLAVA_FIXTURES names, else the tree's own.
inline std::filesystem::path FixturesDir() {
  const char* folder = std::getenv("LLAVA_FIXTURES");
  return folder && *folder ? std::filesystem::path(folder) : OwnFixturesDir();
}

}  // namespace llava
