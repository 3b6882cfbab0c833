#pragma once

#include <string>

#include "tests/support/run_program.h"

namespace llava {

inline Outcome Eval(const std::string& arguments) { return RunProgram("llava-eval", arguments); }

}  // namespace llava
