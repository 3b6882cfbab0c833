#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace llava {

// Adds `science`. What is returned runs it after parsing and returns the exit code: 0 done, 1
// failed, 2 flags that do not fit each other, 128 + the signal that stopped it.
std::function<int()> AddScienceCommand(CLI::App& app);

}  // namespace llava
