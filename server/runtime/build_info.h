#pragma once

#include <string>

namespace llava {

// "0.1.0", as in the top CMakeLists.txt.
std::string BuildVersion();
// Short git commit, "+" behind it when the tree had changes; "unknown" outside git.
std::string BuildCommit();
// One line for --version: program, version, commit, compiler.
std::string BuildLine(const std::string& program);

}  // namespace llava
