#pragma once

#include <functional>

namespace llava {

// Runs what a command line asks for and returns its exit code. What it throws becomes one line on
// stderr that begins with the program's name, and 2 for std::invalid_argument (a wrong request),
// else 1.
int RunGuarded(const char* program, const std::function<int()>& work);

}  // namespace llava
