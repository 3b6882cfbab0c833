#pragma once

// Runs a program of the build to its end.

#include <sys/wait.h>

#include <cstdio>
#include <stdexcept>
#include <string>

#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {

struct Outcome {
  int code = -1;
  std::string output, error;
};

// `arguments` as in a shell; with 2>&1 among them all is output.
inline Outcome RunProgram(const std::string& name, const std::string& arguments) {
  const TempFolder folder;
  const std::string error = folder.Write("stderr", "");
  std::FILE* pipe = popen((ProgramPath(name) + " 2>'" + error + "' " + arguments).c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot run " + name);
  Outcome outcome;
  char buffer[4096];
  while (const size_t size = std::fread(buffer, 1, sizeof buffer, pipe)) {
    outcome.output.append(buffer, size);
  }
  outcome.code = WEXITSTATUS(pclose(pipe));
  outcome.error = ReadBytes(error);
  return outcome;
}

}  // namespace llava
