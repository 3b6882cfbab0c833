#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace llava {

// Adds `answer`. What is returned runs it after parsing and returns the exit code: 0 done, 1 a file
// that cannot be read or written or questions without an answer, 2 flags that do not fit each other
// or the model, 3 the budget is spent, 128 + the signal that stopped it.
std::function<int()> AddAnswerCommand(CLI::App& app);

}  // namespace llava
