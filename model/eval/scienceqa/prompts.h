#pragma once

// Problems as questions and answers, in every format of ScienceQA and LLaVA.

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "model/eval/scienceqa/problems.h"

namespace llava {

// A format has a name like QCM-LEA: what is told and what is answered, in this order. Q question,
// C context (the hint and, if there is one, the caption), M choices, L lecture, E explanation (the
// solution), A answer. Const after construction.
class ScienceFormat {
 public:
  // Throws std::invalid_argument listing the parts there are.
  explicit ScienceFormat(std::string_view name);

  const std::string& name() const { return name_; }
  // As the published converter, byte by byte: in AL and AE lecture and solution have changed
  // places; "Question: " and "Answer: " in front are taken away, and then wherever else they stand.
  std::string Question(const ScienceProblem& problem) const;
  std::string Answer(const ScienceProblem& problem) const;
  // Between reasons and letter: "###\nANSWER:" in LEPA, else empty.
  std::string answer_cue() const;

 private:
  std::string name_, in_, out_;
};

// A record of LLaVA's instruction data.
nlohmann::ordered_json ScienceRecord(const ScienceProblem& problem, const ScienceFormat& format);
// The same as {"id", "image"?, "instruction", "output"}.
nlohmann::ordered_json ScienceInstruction(const ScienceProblem& problem,
                                          const ScienceFormat& format);
// The record with which LLaVA 1.5 is asked: context (if any), question, one choice a line, the
// picture in front, and then `last_line`, if it is not empty; answered by the letter alone.
nlohmann::ordered_json ScienceLetterRecord(const ScienceProblem& problem,
                                           const std::string& last_line);

// What a model says in LEPA, "LECTURE: ..\n###\nANSWER: B.", as LLaVA's evaluation writes it: the
// reasons, and in a line behind them " The answer is B."; any other text unchanged.
std::string ScienceSentence(const std::string& text);

// Messages for a chat model that sees no pictures: a system line, `shots` with their answers, and
// the problem as last user message.
nlohmann::ordered_json ScienceChat(const ScienceProblem& problem,
                                   const std::vector<ScienceProblem>& shots,
                                   const ScienceFormat& format);

}  // namespace llava
