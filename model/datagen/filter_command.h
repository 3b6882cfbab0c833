#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace llava {

// Adds `llava-datagen filter-cc3m` with its flags. What it returns runs it after parsing and gives
// the exit code: 0, 1 (something failed), 2 (wrong use). Must outlive `app`'s parsing; errors go to
// stderr.
std::function<int()> AddFilterCommand(CLI::App& app);

}  // namespace llava
