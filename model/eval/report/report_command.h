#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace llava {

// Adds `report`. What is returned runs it after parsing and returns the exit code: 0 done, 1 a file
// that cannot be read or written or is no result, 2 flags that do not fit each other.
std::function<int()> AddReportCommand(CLI::App& app);

}  // namespace llava
