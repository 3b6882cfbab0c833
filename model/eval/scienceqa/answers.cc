#include "model/eval/scienceqa/answers.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "model/eval/json_lines.h"
#include "model/text/ascii.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kSentence = "The answer is ";
constexpr int kPublishedLetters = 5;  // A .. E

bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }

int InRange(char letter, const std::vector<std::string>& choices) {
  const int choice = letter - 'A';
  return choice < static_cast<int>(choices.size()) ? choice : kAnswerOutOfRange;
}

// The letter of the only "The answer is X" with any character behind it.
std::optional<char> LetterOfSentence(std::string_view text) {
  std::optional<char> found;
  for (size_t at = 0; (at = text.find(kSentence, at)) != text.npos;) {
    const size_t letter = at + kSentence.size();
    if (letter + 1 < text.size() && IsUpper(text[letter]) && text[letter + 1] != '\n') {
      if (found) return std::nullopt;
      found = text[letter];
      at = letter + 2;
    } else {
      ++at;
    }
  }
  return found;
}

std::optional<char> PublishedLetter(std::string_view text,
                                    const std::vector<std::string>& choices) {
  const int known = std::max<int>(kPublishedLetters, static_cast<int>(choices.size()));
  const auto is_choice = [known](char c) { return c >= 'A' && c < 'A' + known; };
  if (text.size() == 1 && is_choice(text[0])) return text[0];
  if (text.size() >= 3 && is_choice(text[0]) && text.substr(1, 2) == ". ") return text[0];
  return LetterOfSentence(text);
}

bool IsWordCharacter(char c) { return std::isalnum(static_cast<unsigned char>(c)) || (c & 0x80); }

// The text without white space, marks of emphasis and full stops at its ends.
std::string_view Bare(std::string_view text) {
  constexpr std::string_view kLoose = " \t\r\n*_`\"'.";
  const size_t begin = text.find_first_not_of(kLoose);
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(kLoose) - begin + 1);
}

// A letter that stands alone at the front: "b", "(b)", "b) because", "B: ".
std::optional<char> LetterInFront(std::string_view text, size_t num_choices) {
  size_t at = 0;
  while (at < text.size() && (text[at] == ' ' || text[at] == '*' || text[at] == '(')) ++at;
  const bool bracket = at > 0 && text.substr(0, at).find('(') != text.npos;
  if (at == text.size()) return std::nullopt;
  const char letter = static_cast<char>(std::toupper(static_cast<unsigned char>(text[at])));
  if (letter < 'A' || letter >= 'A' + static_cast<int>(num_choices)) return std::nullopt;
  const std::string_view rest = text.substr(at + 1);
  if (rest.empty() || rest[0] == ')' ||
      (!bracket && std::string_view(".:,*\n").find(rest[0]) != std::string_view::npos)) {
    return letter;
  }
  return std::nullopt;
}

std::optional<char> LenientLetter(std::string_view text, const std::vector<std::string>& choices) {
  const std::string lowered = Lowered(text);
  // The last place where an answer is announced.
  for (const std::string_view sign : {"answer is", "answer:"}) {
    const size_t at = lowered.rfind(sign);
    if (at == lowered.npos) continue;
    std::string_view rest = text.substr(at + sign.size());
    while (!rest.empty() && (rest[0] == ':' || rest[0] == ' ')) rest.remove_prefix(1);
    if (const auto letter = LetterInFront(rest, choices.size())) return letter;
    const std::string words = Lowered(Bare(rest.substr(0, rest.find('\n'))));
    for (size_t i = 0; i < choices.size(); ++i) {
      if (words == Lowered(Bare(choices[i]))) return ChoiceLetter(static_cast<int>(i));
    }
  }
  if (const auto letter = LetterInFront(Bare(text), choices.size())) return letter;
  // The words of one choice and of no other.
  std::optional<char> found;
  for (size_t i = 0; i < choices.size(); ++i) {
    const std::string words = Lowered(Bare(choices[i]));
    if (words.empty()) continue;
    for (size_t at = 0; (at = lowered.find(words, at)) != lowered.npos; ++at) {
      const size_t end = at + words.size();
      if ((at > 0 && IsWordCharacter(lowered[at - 1])) ||
          (end < lowered.size() && IsWordCharacter(lowered[end]))) {
        continue;
      }
      if (found) return std::nullopt;
      found = ChoiceLetter(static_cast<int>(i));
      break;
    }
  }
  return found;
}

int64_t ChoiceOf(const JsonObject& from, const std::string& key) {
  const Json& value = from.At(key);
  if (value.is_number_integer()) return value.get<int64_t>();
  int64_t choice = 0;
  if (value.is_string()) {  // Python's files hold numbers as text, too
    const auto& text = value.get_ref<const std::string&>();
    const auto read = std::from_chars(text.data(), text.data() + text.size(), choice);
    if (read.ec == std::errc() && read.ptr == text.data() + text.size()) return choice;
  }
  from.Fail(key, "is " + value.dump() + ", the number of a choice is expected");
}

SciencePredictions FromResultFile(const JsonObject& file) {
  SciencePredictions predictions;
  if (file.Has("correct")) predictions.stated_correct = file.Int("correct");
  if (file.Has("results")) {
    const JsonObject results = file.Object("results");
    for (const auto& [id, value] : results.value().items()) {
      predictions.by_id[id].choice = ChoiceOf(results, id);
    }
  }
  if (file.Has("outputs")) {
    const JsonObject outputs = file.Object("outputs");
    for (const auto& [id, value] : outputs.value().items()) {
      predictions.by_id[id].text = outputs.Text(id);
    }
  }
  return predictions;
}

SciencePredictions FromLines(const std::filesystem::path& path) {
  SciencePredictions predictions;
  std::vector<JsonObject> lines = ReadJsonLines(path);
  for (const JsonObject& line : lines) {
    const std::string id =
        IdOf(line, line.Has("question_id") || !line.Has("id") ? "question_id" : "id");
    SciencePrediction prediction;
    const bool has_choice = line.Has("choice");
    if (has_choice) prediction.choice = ChoiceOf(line, "choice");
    const char* key = line.Has("text") || !line.Has("output") ? "text" : "output";
    if (line.Has(key) || !has_choice) prediction.text = line.Text(key);
    predictions.repeated += predictions.by_id.contains(id);
    predictions.by_id[id] = std::move(prediction);
  }
  return predictions;
}

}  // namespace

int ReadAnswer(std::string_view text, const std::vector<std::string>& choices,
               AnswerReading reading) {
  std::optional<char> letter =
      reading == AnswerReading::kSentence ? LetterOfSentence(text) : PublishedLetter(text, choices);
  if (reading == AnswerReading::kLenient && (!letter || InRange(*letter, choices) < 0)) {
    if (const auto other = LenientLetter(text, choices)) letter = other;
  }
  return letter ? InRange(*letter, choices) : kUnreadAnswer;
}

SciencePredictions ReadSciencePredictions(const std::filesystem::path& path) {
  // One object is a result file, unless it is the only line of answers.
  Json value = ReadWholeJson(path);
  if (value.is_object() && (value.contains("results") || value.contains("outputs"))) {
    return FromResultFile(JsonObject(std::move(value), path.string()));
  }
  if (value.is_object() && !value.contains("question_id") && !value.contains("id")) {
    throw std::runtime_error(path.string() +
                             ": has neither \"results\" nor \"outputs\", nor is it JSON lines");
  }
  return FromLines(path);
}

std::vector<int> ChosenAnswers(const std::vector<ScienceProblem>& problems,
                               const SciencePredictions& predictions, AnswerReading reading,
                               bool texts_only) {
  std::vector<int> answers;
  for (const ScienceProblem& problem : problems) {
    const auto found = predictions.by_id.find(problem.id);
    if (found == predictions.by_id.end()) {
      answers.push_back(kMissingAnswer);
    } else if (const auto& choice = found->second.choice; choice && !texts_only) {
      const bool known = *choice < static_cast<int64_t>(problem.choices.size());
      answers.push_back(*choice < 0 ? kUnreadAnswer
                                    : (known ? static_cast<int>(*choice) : kAnswerOutOfRange));
    } else {
      answers.push_back(ReadAnswer(found->second.text, problem.choices, reading));
    }
  }
  return answers;
}

std::vector<int> FallBack(const std::vector<int>& preferred, const std::vector<int>& otherwise) {
  std::vector<int> answers = preferred;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (answers[i] == kUnreadAnswer || answers[i] == kMissingAnswer) answers[i] = otherwise.at(i);
  }
  return answers;
}

}  // namespace llava
