#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace llava {

// Adds `llava-datagen scenes` with its flags. What it returns runs it after parsing and gives the
// exit code: 0, 1 (something failed), 2 (wrong use), 128 + signal (stopped). Must outlive `app`'s
// parsing; errors go to stderr.
std::function<int()> AddScenesCommand(CLI::App& app);

}  // namespace llava
