#include "model/eval/scienceqa/prompts.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "model/data/instructions/record_json.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, 8> kIn = {"QCM",   "CQM",  "QCML", "QCME",
                                                 "QCMLE", "QCLM", "QCEM", "QCLEM"};
constexpr std::array<std::string_view, 10> kOut = {"A",  "AL", "AE",  "ALE", "AEL",
                                                   "LA", "EA", "LEA", "ELA", "LEPA"};
constexpr std::string_view kBecause = "BECAUSE:";

std::string ReplaceAll(std::string_view text, std::string_view what, std::string_view by) {
  std::string result;
  size_t at = 0;
  for (size_t found; (found = text.find(what, at)) != text.npos; at = found + what.size()) {
    (result += text.substr(at, found - at)) += by;
  }
  return result += text.substr(at);
}

// Every two spaces become one, once; nothing dangles at the end.
std::string Tidied(std::string_view text) {
  std::string tidy(StripUtf8(ReplaceAll(text, "  ", " ")));
  if (tidy.ends_with(kBecause)) tidy = StripUtf8(ReplaceAll(tidy, kBecause, ""));
  return tidy;
}

// Without `prefix`: if the text begins with it, every occurrence goes.
std::string WithoutPrefix(std::string text, std::string_view prefix) {
  return text.starts_with(prefix) ? ReplaceAll(text, prefix, "") : text;
}

// Some lectures write line ends as backslash and n.
std::string Lines(const std::string& text) { return ReplaceAll(text, "\\n", "\n"); }

std::string Context(const ScienceProblem& problem) {
  const std::string both = problem.hint + " " + problem.caption;
  const std::string context(StripUtf8(both));
  return context.empty() ? "N/A" : context;
}

std::string Choices(const ScienceProblem& problem) {
  std::string text;
  for (size_t i = 0; i < problem.choices.size(); ++i) {
    if (i > 0) text += ' ';
    text += std::string("(") + ChoiceLetter(static_cast<int>(i)) + ") " + problem.choices[i];
  }
  return text;
}

template <size_t N>
std::string Listed(const std::array<std::string_view, N>& names) {
  std::string text;
  for (const std::string_view name : names) (text += ' ') += name;
  return text;
}

// "LE" -> lecture and solution, with a space between.
std::string Reasons(const ScienceProblem& problem, std::string_view letters) {
  std::string text;
  bool first = true;
  for (const char letter : letters) {
    if (letter != 'L' && letter != 'E') continue;
    if (!first) text += ' ';
    text += Lines(letter == 'L' ? problem.lecture : problem.solution);
    first = false;
  }
  return text;
}

std::string Picture(const ScienceProblem& problem) { return problem.id + "/" + problem.image; }

Json Conversation(const ScienceProblem& problem, const std::string& question,
                  const std::string& answer, bool image_first) {
  return InstructionRecordJson(problem.id, problem.image.empty() ? "" : Picture(problem),
                               {QuestionAnswer{question, answer}}, image_first);
}

}  // namespace

ScienceFormat::ScienceFormat(std::string_view name) : name_(name) {
  const size_t dash = name.find('-');
  if (dash != name.npos) {
    in_ = name.substr(0, dash);
    out_ = name.substr(dash + 1);
  }
  if (std::find(kIn.begin(), kIn.end(), in_) == kIn.end() ||
      std::find(kOut.begin(), kOut.end(), out_) == kOut.end()) {
    throw std::invalid_argument("\"" + name_ + "\" is no format: expected one of" + Listed(kIn) +
                                ", a -, and one of" + Listed(kOut));
  }
}

std::string ScienceFormat::Question(const ScienceProblem& problem) const {
  std::string text;
  if (in_ == "CQM") {
    text = "Context: " + Context(problem) + "\nQuestion: " + problem.question + "\n";
  } else {
    text = "Question: " + problem.question + "\nContext: " + Context(problem) + "\n";
  }
  const std::string because = "BECAUSE: " + Reasons(problem, in_) + "\n";
  const std::string options = "Options: " + Choices(problem) + "\n";
  const bool reasons = in_.size() > 3, reasons_first = in_.ends_with("M");
  if (reasons && reasons_first) text += because;
  text += options;
  if (reasons && !reasons_first) text += because;
  return WithoutPrefix(Tidied(text), "Question: ");
}

std::string ScienceFormat::Answer(const ScienceProblem& problem) const {
  const char letter = ChoiceLetter(problem.answer);
  const std::string sentence = std::string("The answer is ") + letter + ".";
  std::string text;
  if (out_ == "LEPA") {
    const std::string lecture = Lines(problem.lecture), solution = Lines(problem.solution);
    if (!StripUtf8(lecture).empty()) text += "LECTURE: " + lecture + "\n";
    if (!StripUtf8(solution).empty()) text += "SOLUTION: " + solution + "\n";
    text += std::string("###\nANSWER: ") + letter + ".";
  } else if (out_ == "A") {
    text = "Answer: " + sentence;
  } else if (out_[0] == 'A') {
    const std::string_view reasons = out_ == "AL" ? "E" : out_ == "AE" ? "L" : out_;
    text = "Answer: " + sentence + " BECAUSE: " + Reasons(problem, reasons);
  } else {
    text = "Answer: " + Reasons(problem, out_) + " " + sentence;
  }
  return WithoutPrefix(Tidied(text), "Answer: ");
}

std::string ScienceFormat::answer_cue() const { return out_ == "LEPA" ? "###\nANSWER:" : ""; }

Json ScienceRecord(const ScienceProblem& problem, const ScienceFormat& format) {
  return Conversation(problem, format.Question(problem), format.Answer(problem),
                      /*image_first=*/false);
}

Json ScienceInstruction(const ScienceProblem& problem, const ScienceFormat& format) {
  Json record = {{"id", problem.id}};
  if (!problem.image.empty()) record["image"] = Picture(problem);
  record["instruction"] = format.Question(problem) + (problem.image.empty() ? "" : "\n<image>");
  record["output"] = format.Answer(problem);
  return record;
}

Json ScienceLetterRecord(const ScienceProblem& problem, const std::string& last_line) {
  std::string text;
  if (!problem.hint.empty()) text += "Context: " + problem.hint + "\n";
  text += problem.question;
  for (size_t i = 0; i < problem.choices.size(); ++i) {
    text += std::string("\n") + ChoiceLetter(static_cast<int>(i)) + ". " + problem.choices[i];
  }
  if (!last_line.empty()) text += "\n" + last_line;
  return Conversation(problem, text, std::string(1, ChoiceLetter(problem.answer)),
                      /*image_first=*/true);
}

std::string ScienceSentence(const std::string& text) {
  constexpr std::string_view kMark = "ANSWER:", kLine = "###";
  const size_t at = text.rfind(kMark);
  if (at == text.npos) return text;
  const std::string_view whole = text;
  std::string_view reasons = StripUtf8(whole.substr(0, at));
  if (reasons.ends_with(kLine)) {
    reasons = StripUtf8(reasons.substr(0, reasons.size() - kLine.size()));
  }
  return std::string(reasons) + "\n The answer is " +
         std::string(StripUtf8(whole.substr(at + kMark.size())));
}

Json ScienceChat(const ScienceProblem& problem, const std::vector<ScienceProblem>& shots,
                 const ScienceFormat& format) {
  const auto ask = [&format](const ScienceProblem& one) {
    return "Please solve this problem and explain your choice.\n" + format.Question(one);
  };
  Json messages = Json::array();
  messages.push_back(
      {{"role", "system"}, {"content", "You help people with questions of science."}});
  for (const ScienceProblem& shot : shots) {
    messages.push_back({{"role", "user"}, {"content", ask(shot)}});
    messages.push_back({{"role", "assistant"}, {"content", format.Answer(shot)}});
  }
  messages.push_back({{"role", "user"}, {"content", ask(problem)}});
  return messages;
}

}  // namespace llava
