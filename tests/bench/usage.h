#pragma once

// What every program here does for --help.

#include <cstdio>
#include <string_view>

namespace llava::bench {

// True if an argument asks for help, which is printed: the program has nothing else to do.
inline bool PrintedUsage(int argc, char** argv, const char* usage) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument != "--help" && argument != "-h") continue;
    std::fputs(usage, stdout);
    return true;
  }
  return false;
}

}  // namespace llava::bench
