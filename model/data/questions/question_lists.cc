#include "model/data/questions/question_lists.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace llava {
namespace {

std::vector<std::string> ReadQuestionList(const std::filesystem::path& path) {
  std::ifstream file(path);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file) {
    throw std::invalid_argument(path.string() +
                                ": the question list cannot be read: " + std::strerror(errno));
  }
  return ParseQuestionList(text, path.string());
}

}  // namespace

std::vector<std::string> ParseQuestionList(std::string_view text, const std::string& source) {
  constexpr std::string_view kWhite = " \t\r";
  std::vector<std::string> questions;
  int number = 0;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    ++number;
    const size_t begin = line.find_first_not_of(kWhite);
    if (begin == line.npos) continue;
    line = line.substr(begin, line.find_last_not_of(kWhite) + 1 - begin);
    if (line.find("<image>") != line.npos) {
      throw std::invalid_argument(source + ":" + std::to_string(number) +
                                  ": a question may not hold <image>: its place is added later");
    }
    questions.emplace_back(line);
  }
  if (questions.empty())
    throw std::invalid_argument(source + ": no questions, expected one a line");
  return questions;
}

std::vector<std::string> BriefQuestions(const std::filesystem::path& own) {
  return own.empty() ? ParseQuestionList(BriefQuestionsText(), "brief.txt") : ReadQuestionList(own);
}

std::vector<std::string> DetailedQuestions(const std::filesystem::path& own) {
  return own.empty() ? ParseQuestionList(DetailedQuestionsText(), "detailed.txt")
                     : ReadQuestionList(own);
}

}  // namespace llava
