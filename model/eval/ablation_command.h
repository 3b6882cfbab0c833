#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace llava {

// Adds `ablation`. What is returned runs it after parsing and returns the exit code: 0 done, 1 a
// file that cannot be read or written, 2 results or flags that do not fit each other.
std::function<int()> AddAblationCommand(CLI::App& app);

}  // namespace llava
