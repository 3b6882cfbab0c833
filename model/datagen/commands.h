#pragma once

// The commands of llava-datagen.

#include <functional>

namespace CLI {
class App;
}

namespace llava {

// Each adds itself with its flags to `app`. What is returned runs it after parsing, for RunGuarded,
// and returns the exit code: 0 done, 1 something failed, 2 wrong use, 3 the budget is used up, 128
// + the signal that stopped it.

// `scenes`: pictures of emoji scenes with captions, boxes and instruction data.
std::function<int()> AddScenesCommand(CLI::App& app);
// `science`: problems about them, laid out as ScienceQA.
std::function<int()> AddScienceCommand(CLI::App& app);
// `instruct`: a teacher's conversations, descriptions and reasoning.
std::function<int()> AddInstructCommand(CLI::App& app);
// `expand`: naive expansion, without a teacher.
std::function<int()> AddExpandCommand(CLI::App& app);
// `questions`: asks a teacher for a list of questions.
std::function<int()> AddQuestionsCommand(CLI::App& app);
// `prompts`: writes the built-in prompts into a folder, to be changed there.
std::function<int()> AddPromptsCommand(CLI::App& app);
// `filter-cc3m`: image-text pairs in which many things are named.
std::function<int()> AddFilterCommand(CLI::App& app);

}  // namespace llava
