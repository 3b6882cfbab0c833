#pragma once

// From a teacher's text to questions and answers.

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "model/data/instructions/record_json.h"

namespace llava {

struct ParsedDialogue {
  std::vector<QuestionAnswer> turns;  // without white space at their ends; may be empty
  bool open_end = false;              // a question without an answer followed
};

// The text's structure is not the one that was asked for.
class ParseFault : public std::runtime_error {
 public:
  enum class Kind { kNoDialogue, kAlternation };
  ParseFault(Kind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

// Reads "Question:" and "Answer:" by turns, on lines of their own or in front of the text, with
// "===" between them or not; labels may be numbered, in Markdown or of other case ("**Question
// 2:**"). Lines in front of the first label are dropped. Also JSON: an array or lines of objects
// with "question" and "answer". Throws ParseFault.
ParsedDialogue ParseDialogue(std::string_view text);

// The text as plain as it was asked for: without Markdown's emphasis, headings, code marks and
// rules, without surplus empty lines, with "\n" as the only end of lines.
std::string PlainText(std::string_view text);

}  // namespace llava
