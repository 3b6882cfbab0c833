#pragma once

// A teacher's own list of questions, as the paper's lists were made.

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "model/datagen/prompt_set.h"
#include "model/openai/chat.h"

namespace llava {

// The questions of a reply: its lines without numbers, list marks, quotes and Markdown; lines that
// are none (no letter, an announcement that ends with a colon, <image>, fewer than three words) and
// those that `known` holds already in other letters or punctuation are left out.
std::vector<std::string> ParseQuestions(std::string_view reply,
                                        const std::vector<std::string>& known);

// Asks until there are `count` questions, each time for those that are missing, five times at most.
// Throws std::runtime_error if the teacher does not answer or gives too few.
std::vector<std::string> AskForQuestions(ChatBackend& teacher, const PromptSet& prompts,
                                         const ChatRequest& defaults, bool detailed, int count);

}  // namespace llava
