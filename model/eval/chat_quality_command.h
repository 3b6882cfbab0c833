#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace llava {

// Adds `chat-quality`. What is returned runs it after parsing and returns the exit code: 0 done, 1
// failed, 2 flags that do not fit each other or the model.
std::function<int()> AddChatQualityCommand(CLI::App& app);

}  // namespace llava
