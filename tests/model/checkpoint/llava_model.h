#pragma once

// Runs the program llava-model.

#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/checkpoint/folders.h"
#include "tests/support/paths.h"

namespace llava {

struct Outcome {
  int code;
  std::string output, error;
};

inline Outcome LlavaModel(const std::string& arguments) {
  const TempFolder folder;
  const std::string error = (folder.path() / "stderr").string();
  FILE* pipe = popen((ProgramPath("llava-model") + " " + arguments + " 2>" + error).c_str(), "r");
  Outcome run;
  char buffer[4096];
  while (const size_t size = std::fread(buffer, 1, sizeof buffer, pipe)) {
    run.output.append(buffer, size);
  }
  run.code = WEXITSTATUS(pclose(pipe));
  run.error = ReadBytes(error);
  return run;
}

inline void ExpectOneLine(const Outcome& run, int code, const std::string& what) {
  EXPECT_EQ(run.code, code);
  EXPECT_THAT(run.error,
              testing::AllOf(testing::StartsWith("llava-model: "), testing::HasSubstr(what)));
  EXPECT_EQ(std::count(run.error.begin(), run.error.end(), '\n'), 1) << run.error;
  EXPECT_EQ(run.output, "");
}

}  // namespace llava
