#pragma once

// Runs llava-eval.

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "tests/support/paths.h"

namespace llava {

struct Outcome {
  int code = -1;
  std::string output;  // stdout
};

inline Outcome Eval(const std::string& arguments) {
  Outcome outcome;
  std::FILE* pipe = popen((ProgramPath("llava-eval") + " " + arguments).c_str(), "r");
  std::array<char, 4096> buffer;
  for (size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    outcome.output.append(buffer.data(), n);
  }
  outcome.code = WEXITSTATUS(pclose(pipe));
  return outcome;
}

}  // namespace llava
