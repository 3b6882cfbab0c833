#include "model/datagen/quality_gates.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <iterator>
#include <utility>

#include "model/digest/sha256.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

// " the words of a text " in lower case without punctuation: phrases are found as substrings.
std::string WordsInARow(std::string_view text) {
  std::string row = " ";
  for (size_t at = 0; at < text.size(); ++at) {
    char byte = text[at];
    if (byte == '\xE2' && at + 2 < text.size() && (text[at + 1] & '\xFE') == '\x80') {
      byte = text[at + 2] == '\x99' ? '\'' : ' ';  // dashes, quotes and dots of U+2000 to U+207F
      at += 2;
    }
    const auto c = static_cast<unsigned char>(byte);
    if (std::isalnum(c) || c >= 0x80 || c == '\'') {
      row += static_cast<char>(std::tolower(c));
    } else if (row.back() != ' ') {
      row += ' ';
    }
  }
  if (row.back() != ' ') row += ' ';
  return row;
}

// "bounding box*" as WordsInARow has it: the end of the last word is open.
std::string PhraseInARow(const std::string& phrase) {
  std::string row = WordsInARow(phrase);
  if (phrase.ends_with('*')) row.pop_back();
  return row;
}

std::vector<std::string> PhrasesInARow(const std::vector<std::string>& phrases) {
  std::vector<std::string> rows;
  for (const std::string& phrase : phrases) rows.push_back(PhraseInARow(phrase));
  return rows;
}

// Two fractions in brackets, as in "[0.12, 0.5, 0.3, 0.9]" or "(0.12, 0.5)".
bool HoldsCoordinates(std::string_view text) {
  const auto skip = [&](size_t at, std::string_view bytes) {
    return std::min(text.find_first_not_of(bytes, at), text.size());
  };
  for (size_t at = 0; (at = text.find_first_of("[(", at)) != text.npos;) {
    size_t next = skip(++at, " ");
    int fractions = 0;
    while (next < text.size()) {
      const size_t dot = skip(next, "0123456789");
      if (dot == text.size() || text[dot] != '.') break;
      const size_t end = skip(dot + 1, "0123456789");
      if (end == dot + 1) break;
      ++fractions;
      next = skip(end, ", ");
      if (next == end) break;
    }
    if (fractions >= 2) return true;
  }
  return false;
}

constexpr std::array<std::string_view, 48> kEnglishWords = {
    "the",   "of",    "and",   "is",    "are",   "to",    "it",   "with", "that", "this",
    "there", "they",  "their", "he",    "she",   "his",   "her",  "for",  "from", "by",
    "which", "what",  "who",   "how",   "where", "when",  "why",  "does", "has",  "have",
    "can",   "could", "would", "might", "not",   "or",    "but",  "as",   "at",   "its",
    "be",    "been",  "these", "those", "some",  "while", "into", "you"};

// Of a long enough text: enough of the words that no English text can do without, and letters of
// its alphabet.
bool LooksEnglish(std::string_view text) {
  uint64_t letters = 0, foreign = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Char next = ReadUtf8(rest);
    const char32_t c = next.value;
    const bool latin = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= 0xC0 && c < 0x250);
    const bool symbol = (c >= 0x2000 && c < 0x2C00) || (c >= 0xFE00 && c < 0xFE10) || c >= 0x1F000;
    if (latin) ++letters;
    if (c >= 0x250 && !symbol) ++foreign;
    rest.remove_prefix(next.size);
  }
  if (foreign * 20 > letters + foreign) return false;
  const std::string row = WordsInARow(text);
  uint64_t words = 0, english = 0;
  for (size_t at = 1; at < row.size();) {
    const size_t end = row.find(' ', at);
    const std::string_view word = std::string_view(row).substr(at, end - at);
    ++words;
    english += std::find(kEnglishWords.begin(), kEnglishWords.end(), word) != kEnglishWords.end();
    at = end + 1;
  }
  constexpr uint64_t kEnoughWords = 12;
  return words < kEnoughWords || english * 100 >= words * 15;
}

bool EndsLikeASentence(std::string_view text) {
  if (text.empty()) return false;
  if (std::string_view(".!?:)\"'").find(text.back()) != std::string_view::npos) return true;
  return static_cast<unsigned char>(text.back()) >= 0x80;  // other quotes and full stops
}

std::string Shortened(std::string_view text) {
  constexpr size_t kMost = 80;
  std::string shortened(CutUtf8(text, kMost));
  if (text.size() > kMost) shortened += "...";
  std::replace(shortened.begin(), shortened.end(), '\n', ' ');
  return shortened;
}

std::string Quoted(const std::string& text) { return '"' + text + '"'; }

std::string RangeText(uint64_t value, const Limits& limits, const char* what) {
  std::string text =
      std::to_string(value) + " " + what + ", expected " + std::to_string(limits.least) + " to ";
  return text + (limits.most == UINT64_MAX ? "any number" : std::to_string(limits.most));
}

}  // namespace

const char* ToString(Rule rule) {
  constexpr std::array<const char*, kNumRules> kNames = {
      "unanswered", "empty",    "refused",  "no_dialogue",     "alternation",   "truncated",
      "image_mark", "leak",     "language", "question_length", "answer_length", "repeated_question",
      "turns",      "duplicate"};
  return kNames[static_cast<size_t>(rule)];
}

uint64_t CountWords(std::string_view text) {
  uint64_t words = 0;
  bool within = false;
  for (const char byte : text) {
    const bool space = std::isspace(static_cast<unsigned char>(byte)) != 0;
    if (!space && !within) ++words;
    within = !space;
  }
  return words;
}

QualityGates::QualityGates(const PromptSet& prompts, Language language)
    : prompts_(prompts),
      language_(language),
      leaks_(PhrasesInARow(prompts.leaks())),
      refusals_(PhrasesInARow(prompts.refusals())) {}

std::optional<QualityGates::Fault> QualityGates::FaultOfText(std::string_view text,
                                                             bool answer) const {
  if (text.find("<image>") != text.npos) return Fault{Rule::kImageMark, Shortened(text)};
  const std::string row = WordsInARow(text);
  for (size_t i = 0; i < leaks_.size(); ++i) {
    if (row.find(leaks_[i]) != row.npos) return Fault{Rule::kLeak, Quoted(prompts_.leaks()[i])};
  }
  if (HoldsCoordinates(text)) return Fault{Rule::kLeak, "coordinates in brackets"};
  if (answer && language_ == Language::kEnglish && !LooksEnglish(text)) {
    return Fault{Rule::kLanguage, Shortened(text)};
  }
  return std::nullopt;
}

std::optional<QualityGates::Fault> QualityGates::FaultOfTurn(const TypePrompts& prompts,
                                                             const QuestionAnswer& turn,
                                                             bool has_question) const {
  if (has_question && turn.question.empty()) return Fault{Rule::kEmpty, "a question"};
  if (turn.answer.empty()) return Fault{Rule::kEmpty, "an answer"};
  const std::string row = WordsInARow(turn.answer);
  for (size_t i = 0; i < refusals_.size(); ++i) {
    if (row.starts_with(refusals_[i])) {
      return Fault{Rule::kRefused, Quoted(prompts_.refusals()[i])};
    }
  }
  if (has_question) {
    if (auto fault = FaultOfText(turn.question, false)) return fault;
  }
  if (auto fault = FaultOfText(turn.answer, true)) return fault;
  const uint64_t question = CountWords(turn.question), answer = CountWords(turn.answer);
  if (has_question && !prompts.question_words.Hold(question)) {
    return Fault{Rule::kQuestionLength, RangeText(question, prompts.question_words, "words")};
  }
  if (!prompts.answer_words.Hold(answer)) {
    return Fault{Rule::kAnswerLength, RangeText(answer, prompts.answer_words, "words")};
  }
  return std::nullopt;
}

Screened QualityGates::Screen(ResponseType type, const ChatReply& reply) const {
  const auto reject = [](Rule rule, std::string detail) {
    return Screened{
        .turns = {}, .rejected = rule, .cut = std::nullopt, .detail = std::move(detail)};
  };
  const TypePrompts& prompts = prompts_[type];
  if (reply.finish_reason == "content_filter") return reject(Rule::kRefused, "content_filter");
  if (StripUtf8(reply.text).empty()) return reject(Rule::kEmpty, "the reply");
  const std::string start = WordsInARow(std::string_view(reply.text).substr(0, 200));
  for (size_t i = 0; i < refusals_.size(); ++i) {
    if (start.starts_with(refusals_[i])) {
      return reject(Rule::kRefused, Quoted(prompts_.refusals()[i]));
    }
  }
  const bool described = type == ResponseType::kDetail;
  const bool cut_off = reply.finish_reason == "length";
  ParsedDialogue dialogue;
  if (described) {
    dialogue.turns = {{"", reply.text}};
    try {  // some label it all the same
      const ParsedDialogue labelled = ParseDialogue("Question: x\n" + reply.text);
      if (labelled.turns.size() == 1) {
        const auto& [before, answer] = labelled.turns[0];  // "x", perhaps "Sure, here it is:"
        if (before != "x" && before.size() > answer.size()) {
          return reject(Rule::kAlternation, "an answer behind a description");
        }
        dialogue.turns[0].answer = answer;
      }
    } catch (const ParseFault&) {
      return reject(Rule::kAlternation, "questions in a description");
    }
  } else {
    try {
      dialogue = ParseDialogue(reply.text);
    } catch (const ParseFault& fault) {
      return reject(
          fault.kind() == ParseFault::Kind::kAlternation ? Rule::kAlternation : Rule::kNoDialogue,
          fault.what());
    }
  }
  Screened screened;
  const auto cut = [&](Rule rule, std::string detail) {
    screened.cut = rule;
    screened.detail = std::move(detail);
  };
  if (cut_off) {
    if (!dialogue.open_end && !dialogue.turns.empty()) dialogue.turns.pop_back();
    cut(Rule::kTruncated, "finish_reason length");
  } else if (dialogue.open_end) {
    cut(Rule::kTruncated, "the last question has no answer");
  } else if (reply.finish_reason.empty() && type != ResponseType::kConversation &&
             !EndsLikeASentence(StripUtf8(dialogue.turns.back().answer))) {
    dialogue.turns.pop_back();
    cut(Rule::kTruncated, "the last sentence has no end");
  }
  std::unordered_set<std::string> asked;
  for (QuestionAnswer& turn : dialogue.turns) {
    turn.question = PlainText(turn.question);
    turn.answer = PlainText(turn.answer);
    auto fault = FaultOfTurn(prompts, turn, !described);
    if (!fault && !described && !asked.insert(WordsInARow(turn.question)).second) {
      fault = Fault{Rule::kRepeatedQuestion, Shortened(turn.question)};
    }
    if (fault) {
      cut(fault->rule, std::move(fault->detail));
      break;
    }
    if (screened.turns.size() == prompts.turns.most) {
      cut(Rule::kTurns, "more than " + std::to_string(prompts.turns.most));
      break;
    }
    screened.turns.push_back(std::move(turn));
  }
  if (screened.turns.size() >= std::max<uint64_t>(1, prompts.turns.least)) return screened;
  if (!screened.cut) {
    cut(Rule::kTurns, RangeText(screened.turns.size(), prompts.turns, "turns"));
  }
  return reject(*screened.cut, screened.detail);
}

bool Deduplicator::Add(const std::string& image, const std::vector<QuestionAnswer>& turns) {
  constexpr uint64_t kShort = 20;  // words
  std::string text;
  for (const QuestionAnswer& turn : turns) {
    text += WordsInARow(turn.question) + "\n" + WordsInARow(turn.answer) + "\n";
  }
  if (CountWords(text) < kShort) text += image;
  return seen_.insert(ToBytes(HashBytes(text)).substr(0, 16)).second;
}

}  // namespace llava
