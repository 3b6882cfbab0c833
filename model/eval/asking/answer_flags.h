#pragma once

// The flags of commands that put questions to a model, and the work behind them.

#include <CLI/App.hpp>
#include <functional>
#include <string>
#include <vector>

#include "model/eval/asking/visual_question.h"
#include "model/openai/chat_flags.h"

namespace llava {

// Who answers: a checkpoint here, or a chat model behind OpenAI's protocol.
class AnswerFlags {
 public:
  AnswerFlags();

  // Must outlive the parsing of `command`.
  void Add(CLI::App& command);

  // Answers all questions into --out, LLaVA's answers.jsonl, in the order of the questions once all
  // are answered; `shape` (may be empty) makes of what the model said, without white space at its
  // ends, what is written. Goes on
  // where an earlier run stopped: what --out has (from a checkpoint), or a journal beside it (from
  // a server). A question that cannot be answered is told, and the others are all the same. Returns
  // the exit code as ChatAnswers::Report. Throws what reading models and files throws.
  int Answer(std::vector<VisualQuestion> questions,
             const std::function<std::string(const std::string&)>& shape = {}) const;

 private:
  int AnswerHere(const std::vector<VisualQuestion>& questions,
                 const std::function<std::string(const std::string&)>& shape) const;
  int AnswerByServer(const std::vector<VisualQuestion>& questions,
                     const std::function<std::string(const std::string&)>& shape) const;

  ChatFlags chat_;
  std::string checkpoint_, tower_, chat_template_, out_, model_id_;
  int threads_ = 0;
  size_t limit_ = 0;
};

}  // namespace llava
