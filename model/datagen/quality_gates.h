#pragma once

// Which of a teacher's answers become training data.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "model/datagen/dialogue_parser.h"
#include "model/datagen/prompt_set.h"
#include "model/openai/chat.h"

namespace llava {

// In the order in which they are tried.
enum class Rule {
  kUnanswered,      // no reply: the request failed
  kEmpty,           // of the reply, a question or an answer
  kRefused,         // "I'm sorry, but ...", or finish_reason content_filter
  kNoDialogue,      // no Question: and Answer:
  kAlternation,     // not by turns
  kTruncated,       // finish_reason length, or a long answer without an end
  kImageMark,       // <image> within the text
  kLeak,            // tells of captions, boxes or coordinates
  kLanguage,        // not the one that is wanted
  kQuestionLength,  // in words
  kAnswerLength,
  kRepeatedQuestion,  // within a dialogue
  kTurns,             // too few or too many are left
  kDuplicate,         // of another record
};
inline constexpr int kNumRules = 14;
const char* ToString(Rule rule);  // "unanswered", "leak", ...

enum class Language { kEnglish, kAny };

// What came of a reply. A dialogue is cut in front of its first bad turn, because what comes before
// it makes sense without it; if nothing is left, the rule that cut it rejects it.
struct Screened {
  std::vector<QuestionAnswer> turns;  // a description has an empty question
  std::optional<Rule> rejected, cut;  // cut: turns are missing at the end
  std::string detail;                 // what exactly was wrong
};

// Const after construction, thread-safe, a pure function of its arguments.
class QualityGates {
 public:
  // `prompts` must outlive it.
  QualityGates(const PromptSet& prompts, Language language);

  Screened Screen(ResponseType type, const ChatReply& reply) const;

 private:
  struct Fault {
    Rule rule;
    std::string detail;
  };
  std::optional<Fault> FaultOfText(std::string_view text, bool answer) const;
  std::optional<Fault> FaultOfTurn(const TypePrompts& prompts, const QuestionAnswer& turn,
                                   bool has_question) const;

  const PromptSet& prompts_;
  Language language_;
  std::vector<std::string> leaks_, refusals_;  // as words in a row, see quality_gates.cc
};

// Knows the records before: equal ones differ at most in case, spaces and punctuation. Short
// dialogues about different pictures may be equal by chance and count as different.
class Deduplicator {
 public:
  // False if an equal dialogue was added before.
  bool Add(const std::string& image, const std::vector<QuestionAnswer>& turns);

 private:
  std::unordered_set<std::string> seen_;  // hashes
};

uint64_t CountWords(std::string_view text);  // by white space

}  // namespace llava
