#include "model/eval/judge/reviews.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <stdexcept>

#include "model/eval/json_lines.h"
#include "model/text/ascii.h"

namespace llava {
namespace {

constexpr double kMostScore = 10;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) || (c & 0x80); }
bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)); }

// What Python's float() makes of a text, if that is finite: "nan" is no score, and would be every
// mean.
std::optional<double> PythonFloat(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool between =
        i > 0 && i + 1 < text.size() && IsDigit(text[i - 1]) && IsDigit(text[i + 1]);
    if (text[i] == '_' && between) continue;
    plain += text[i];
  }
  const bool plus = plain.starts_with('+');
  if (plus) plain.erase(0, 1);
  if (plain.empty() || (plus && plain[0] == '-') || plain.find('(') != plain.npos) return {};
  double value = 0;
  const char* end = plain.data() + plain.size();
  const auto read = std::from_chars(plain.data(), end, value);
  if (read.ec != std::errc() || read.ptr != end || !std::isfinite(value)) return {};
  return value;
}

std::vector<std::string_view> Split(std::string_view text, char at) {
  std::vector<std::string_view> pieces;
  for (size_t begin = 0;;) {
    const size_t end = text.find(at, begin);
    pieces.push_back(text.substr(begin, end == text.npos ? text.npos : end - begin));
    if (end == text.npos) return pieces;
    begin = end + 1;
  }
}

std::optional<JudgeScores> InRange(double reference, double candidate) {
  const bool good =
      reference >= 0 && reference <= kMostScore && candidate >= 0 && candidate <= kMostScore;
  return good ? std::optional(JudgeScores{reference, candidate}) : std::nullopt;
}

// A line of a review taken apart.
struct ScoreLine {
  std::vector<double> scores;
  std::optional<int> assistant;  // the last one named
  bool prose = false;            // has words that do not announce scores
  size_t scores_before_prose = 0;
};

bool Announces(const std::string& word) {
  static constexpr std::array<std::string_view, 22> kWords = {
      "assistant",    "assistants", "score", "scores",    "rating", "ratings",
      "overall",      "and",        "the",   "for",       "is",     "are",
      "of",           "out",        "my",    "final",     "first",  "second",
      "respectively", "vs",         "here",  "evaluation"};
  return std::find(kWords.begin(), kWords.end(), word) != kWords.end();
}

ScoreLine TakeApart(std::string_view line) {
  ScoreLine parts;
  std::string last_word;
  for (size_t at = 0; at < line.size();) {
    if (IsLetter(line[at])) {
      size_t end = at;
      while (end < line.size() && (IsLetter(line[end]) || line[end] == '\'')) ++end;
      last_word = Lowered(line.substr(at, end - at));
      if (!Announces(last_word) && !parts.prose) {
        parts.prose = true;
        parts.scores_before_prose = parts.scores.size();
      }
      at = end;
    } else if (IsDigit(line[at])) {
      double value = 0;
      const char* begin = line.data() + at;
      const auto read =
          std::from_chars(begin, line.data() + line.size(), value, std::chars_format::fixed);
      const size_t end = at + static_cast<size_t>(read.ptr - begin);
      // "-5", but neither "8-9" nor "Assistant 1 - 8".
      const bool minus = at > 0 && line[at - 1] == '-' &&
                         (at == 1 || (!IsDigit(line[at - 2]) && !IsLetter(line[at - 2])));
      if (minus) value = -value;
      const size_t before = line.find_last_not_of(" #*_", at == 0 ? 0 : at - 1);
      const bool named =
          last_word == "assistant" && at > 0 && before != line.npos && IsLetter(line[before]);
      const bool scale = value == kMostScore && !parts.scores.empty() &&
                         ((at > 0 && line[at - 1] == '/') || last_word == "of");
      if (named) {
        parts.assistant = static_cast<int>(value);
      } else if (!scale) {
        parts.scores.push_back(value);
      }
      last_word.clear();
      at = end;
    } else {
      ++at;
    }
  }
  if (!parts.prose) parts.scores_before_prose = parts.scores.size();
  return parts;
}

// The last "(8, 9)" of a text.
std::optional<JudgeScores> LastTuple(std::string_view text) {
  for (size_t open = text.rfind('('); open != text.npos;
       open = open == 0 ? text.npos : text.rfind('(', open - 1)) {
    const size_t close = text.find(')', open);
    if (close == text.npos) continue;
    const auto pieces = Split(text.substr(open + 1, close - open - 1), ',');
    if (pieces.size() != 2) continue;
    const auto one = PythonFloat(pieces[0]), other = PythonFloat(pieces[1]);
    if (!one || !other) continue;
    if (const auto scores = InRange(*one, *other)) return scores;
  }
  return std::nullopt;
}

JudgeReview ReadReview(const JsonObject& line) {
  JudgeReview review;
  review.question_id = IdOf(line);
  review.category = line.Text("category", "");
  review.questions = line.Int("questions", 0);
  review.content = line.Text(line.Has("content") ? "content" : "text", "");
  const char* key = line.Has("tuple") ? "tuple" : "score";
  if (line.Has(key)) {
    const std::vector<double> scores = line.Numbers(key);
    if (scores.size() != 2) {
      line.Fail(key, "has " + std::to_string(scores.size()) + " numbers, expected 2");
    }
    review.published = {scores[0], scores[1]};
  } else if (line.Has("content") || line.Has("text")) {
    review.published = ParseScoresStrictly(review.content).value_or(kNoScores);
  } else {
    line.Fail("tuple", "is missing, and so is \"content\"");
  }
  review.robust = InRange(review.published.reference, review.published.candidate);
  if (!review.robust) review.robust = ParseScoresRobustly(review.content);
  return review;
}

}  // namespace

std::optional<JudgeScores> ParseScoresStrictly(std::string_view review) {
  std::string line(review.substr(0, review.find('\n')));
  std::replace(line.begin(), line.end(), ',', ' ');
  const auto pieces = Split(line, ' ');
  if (pieces.size() != 2) return std::nullopt;
  const auto one = PythonFloat(pieces[0]), other = PythonFloat(pieces[1]);
  if (!one || !other) return std::nullopt;
  return JudgeScores{*one, *other};
}

std::optional<JudgeScores> ParseScoresRobustly(std::string_view review) {
  if (const auto strict = ParseScoresStrictly(review)) {
    if (const auto scores = InRange(strict->reference, strict->candidate)) return scores;
  }
  bool first = true;
  std::optional<double> reference;  // told in a line of its own
  for (const std::string_view line : Split(review, '\n')) {
    const ScoreLine parts = TakeApart(line);
    if (parts.scores.empty() && !parts.prose) continue;
    const bool scores_alone = parts.scores.size() == 2 && !parts.prose;
    const size_t begin = line.find_first_not_of(" \t*_`#>");
    const bool in_front = first && IsDigit(line[begin]) && parts.scores_before_prose == 2;
    if (scores_alone || in_front) {
      if (const auto scores = InRange(parts.scores[0], parts.scores[1])) return scores;
    }
    if (parts.scores.size() == 1 && !parts.prose) {
      if (parts.assistant == 1) {
        reference = parts.scores[0];
      } else if (parts.assistant == 2 && reference) {
        if (const auto scores = InRange(*reference, parts.scores[0])) return scores;
      }
    }
    first = false;
  }
  return LastTuple(review);
}

std::vector<JudgeReview> ReadReviews(const std::filesystem::path& path) {
  std::vector<JudgeReview> reviews;
  for (const JsonObject& line : ReadJsonLines(path)) {
    reviews.push_back(ReadReview(line));
  }
  if (reviews.empty()) throw std::runtime_error(path.string() + ": has no reviews");
  return reviews;
}

}  // namespace llava
