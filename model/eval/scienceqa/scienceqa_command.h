#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace llava {

// Adds `scienceqa` with its own commands. What is returned runs the one that was parsed and returns
// the exit code: 0 done, 1 a file that cannot be read or written, 2 files or flags that do not fit
// each other.
std::function<int()> AddScienceQaCommand(CLI::App& app);

}  // namespace llava
