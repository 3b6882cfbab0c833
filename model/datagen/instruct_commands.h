#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace llava {

// Commands of llava-datagen about words: each adds itself with its flags; what it returns runs it
// after parsing and gives the exit code: 0, 1 (something failed), 2 (wrong use), 3 (the budget is
// used up), 128 + signal (stopped). Errors go to stderr.

// `instruct`: a teacher's conversations, descriptions and reasoning.
std::function<int()> AddInstructCommand(CLI::App& app);
// `expand`: naive expansion, without a teacher.
std::function<int()> AddExpandCommand(CLI::App& app);
// `questions`: asks a teacher for a list of questions.
std::function<int()> AddQuestionsCommand(CLI::App& app);
// `prompts`: writes the built-in prompts into a folder, to be changed there.
std::function<int()> AddPromptsCommand(CLI::App& app);

}  // namespace llava
