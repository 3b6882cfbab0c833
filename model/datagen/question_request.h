#pragma once

// A teacher's own list of questions, as the paper's lists were made.

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "model/datagen/prompt_set.h"
#include "model/openai/chat_run.h"

namespace llava {

// The questions of a reply: its lines without numbers, list marks, quotes and Markdown; lines that
// are none (no letter, an announcement that ends with a colon, <image>, fewer than three words) and
// those that `known` holds already in other letters or punctuation are left out.
std::vector<std::string> ParseQuestions(std::string_view reply,
                                        const std::vector<std::string>& known);

struct QuestionRequest {
  bool detailed = false;  // questions for descriptions, not for captions
  int count = 0;
  ChatRequest defaults = {};  // model, sampling
  ChatRun::Options run = {};  // the budget
};

// Asks until there are so many, each time for those that are missing; what the journal has is not
// asked again, and five times at most what it has not. `questions` is filled if the outcome is
// kFinished. Throws std::runtime_error if the teacher does not answer or gives too few, and as
// ChatJournal.
ChatRun::Outcome AskForQuestions(ChatBackend& teacher, ChatJournal& journal,
                                 const PromptSet& prompts, const QuestionRequest& request,
                                 std::vector<std::string>& questions);

}  // namespace llava
