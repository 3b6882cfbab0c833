#pragma once

// A list of requests put to a chat model: the journal, the bar, and what came of it.

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/openai/chat_flags.h"

namespace llava {

// The first few of them, and how many there are beyond.
void TellFailures(const char* program, const std::vector<std::string>& failures, std::FILE* to);

struct ChatAnswers {
  std::map<std::string, ChatReply> replies;  // by id of the request, of earlier runs too
  std::vector<std::string> failures;         // "question 7: .."
  ChatRun::Outcome outcome = ChatRun::Outcome::kFinished;
  std::string fatal;  // why nothing more was asked; may be empty
  ChatRun::Totals totals;

  // What a program should tell and return: 0 all answered; 1 failures, which a next run asks again;
  // 3 the budget is spent; 128 + the signal that stopped it.
  int Report(const char* program, std::FILE* to) const;
};

// Writes what came of it, a record a line, into `out`. If not everything was answered and the file
// there has more lines, it stays, and "<out>.partial" is written; `to` is told. Nothing at all
// makes no file.
void WriteOutcome(const ChatAnswers& answers, const std::filesystem::path& out,
                  const std::string& lines, std::FILE* to);

// Asks requests 0 .. count - 1, each made when it is its turn, and shows a bar named `verb`. What
// the journal has is not asked again, and is among the answers whatever ended the run. What `make`
// throws, which should name the question, is a failure of that question. Throws as ChatFlags and
// ChatJournal.
ChatAnswers AskChat(const ChatFlags& flags, const std::filesystem::path& journal, size_t count,
                    const std::function<ChatRequest(size_t)>& make, const std::string& verb,
                    std::FILE* progress);

}  // namespace llava
