#pragma once

#include <cstdio>
#include <string>
#include <string_view>

namespace llava {

// Where answers and remarks go: answers to `out`, remarks and errors to `err`, dimmed on a
// terminal. On a terminal, control characters of the text are replaced. Not thread-safe.
class Screen {
 public:
  Screen(std::FILE* out, std::FILE* err);

  // A piece of an answer, shown at once.
  void Answer(std::string_view text);
  // Ends the line of an answer, unless it has ended already.
  void EndAnswer();
  // One line beside the conversation.
  void Remark(std::string_view text);
  void Error(std::string_view text);
  // Waits for input behind this; shown only on a terminal.
  void Prompt(std::string_view text);

  // Why answers were lost, in the system's words; empty: none was.
  const std::string& fault() const { return fault_; }

 private:
  void Line(std::string_view text, const char* before, const char* after);
  void WriteAnswer(std::string_view text);

  std::FILE* const out_;
  std::FILE* const err_;
  const bool out_is_terminal_;
  const bool err_is_terminal_;
  bool line_open_ = false;
  std::string fault_;
};

}  // namespace llava
