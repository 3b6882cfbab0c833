#include "model/datagen/question_request.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <stdexcept>
#include <utility>

#include "model/datagen/dialogue_parser.h"
#include "model/datagen/quality_gates.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

constexpr int kMostRequests = 5;  // beyond those that the journal knows

std::string Letters(std::string_view text) {
  std::string letters;
  for (const char byte : text) {
    const auto c = static_cast<unsigned char>(byte);
    if (std::isalnum(c) || c >= 0x80) letters += static_cast<char>(std::tolower(c));
  }
  return letters;
}

// Without "3.", "-", "*" and quotes around.
std::string_view Bare(std::string_view line) {
  line = StripUtf8(line);
  const size_t digits = std::min(line.find_first_not_of("0123456789"), line.size());
  if (digits > 0 && digits < line.size() && (line[digits] == '.' || line[digits] == ')')) {
    line = StripUtf8(line.substr(digits + 1));
  }
  while (!line.empty() && std::string_view("-*+").find(line.front()) != std::string_view::npos) {
    line = StripUtf8(line.substr(1));
  }
  if (line.size() >= 2 && line.front() == '"' && line.back() == '"') {
    line = StripUtf8(line.substr(1, line.size() - 2));
  }
  return line;
}

}  // namespace

std::vector<std::string> ParseQuestions(std::string_view reply,
                                        const std::vector<std::string>& known) {
  const std::string text = PlainText(reply);
  std::vector<std::string> questions;
  const auto knows = [&](const std::vector<std::string>& list, const std::string& letters) {
    return std::any_of(list.begin(), list.end(),
                       [&](const std::string& other) { return Letters(other) == letters; });
  };
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = Bare(rest.substr(0, end));
    rest.remove_prefix(std::min(rest.size(), end + 1));
    const std::string letters = Letters(line);
    if (letters.empty() || line.ends_with(':') || line.find("<image>") != line.npos ||
        CountWords(line) < 3 || knows(known, letters) || knows(questions, letters)) {
      continue;
    }
    questions.emplace_back(line);
  }
  return questions;
}

ChatRun::Outcome AskForQuestions(ChatBackend& teacher, ChatJournal& journal,
                                 const PromptSet& prompts, const QuestionRequest& wanted,
                                 std::vector<std::string>& questions) {
  questions.clear();
  int sample = 0;
  for (int asked = 0; asked < kMostRequests; ++sample) {
    const int missing = wanted.count - static_cast<int>(questions.size());
    ChatRequest request = wanted.defaults;
    request.id = std::string(wanted.detailed ? "questions-detail-" : "questions-brief-") +
                 std::to_string(sample);
    request.sample = sample;
    request.messages = {
        {.role = "user", .text = prompts.AskForQuestions(wanted.detailed, missing)}};
    asked += !journal.Holds(HashOf(request));
    // A run each: what is asked next depends on the answer.
    std::optional<ChatRequest> next = std::move(request);
    std::optional<ChatResult> result;
    const ChatRun::Outcome outcome =
        ChatRun(teacher, journal, wanted.run)
            .Run([&next] { return std::exchange(next, std::nullopt); },
                 [&result](const ChatResult& ended) { result = ended; });
    if (outcome != ChatRun::Outcome::kFinished) return outcome;
    if (!result || !result->reply) throw std::runtime_error(result ? result->error : "no answer");
    for (std::string& question : ParseQuestions(result->reply->text, questions)) {
      questions.push_back(std::move(question));
      if (static_cast<int>(questions.size()) == wanted.count) return ChatRun::Outcome::kFinished;
    }
  }
  throw std::runtime_error("the teacher gave " + std::to_string(questions.size()) +
                           " different questions in " + std::to_string(sample) + " answers, " +
                           std::to_string(wanted.count) +
                           " were asked for; the same command goes on where answers are kept "
                           "(--out or --journal)");
}

}  // namespace llava
