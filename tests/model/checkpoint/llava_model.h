#pragma once

// Runs the program llava-model.

#include <algorithm>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/run_program.h"

namespace llava {

inline Outcome LlavaModel(const std::string& arguments) {
  return RunProgram("llava-model", arguments);
}

inline void ExpectOneLine(const Outcome& run, int code, const std::string& what) {
  EXPECT_EQ(run.code, code);
  EXPECT_THAT(run.error,
              testing::AllOf(testing::StartsWith("llava-model: "), testing::HasSubstr(what)));
  EXPECT_EQ(std::count(run.error.begin(), run.error.end(), '\n'), 1) << run.error;
  EXPECT_EQ(run.output, "");
}

}  // namespace llava
