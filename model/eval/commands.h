#pragma once

// The commands of llava-eval.

#include <functional>

namespace CLI {
class App;
}

namespace llava {

// Each adds itself with its flags to `app`. What is returned runs it after parsing, for RunGuarded,
// and returns the exit code: 0 done, 1 a file that cannot be read or written or questions without
// an answer, 2 files or flags that do not fit each other, 3 the budget is spent, 128 + the signal
// that stopped it.
std::function<int()> AddChatQualityCommand(CLI::App& app);
std::function<int()> AddAblationCommand(CLI::App& app);
std::function<int()> AddAnswerCommand(CLI::App& app);
std::function<int()> AddJudgeCommand(CLI::App& app);
std::function<int()> AddReportCommand(CLI::App& app);
std::function<int()> AddScienceQaCommand(CLI::App& app);
std::function<int()> AddVqaCommand(CLI::App& app);

}  // namespace llava
