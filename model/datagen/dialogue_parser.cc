#include "model/datagen/dialogue_parser.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <utility>

#include "model/text/json_text.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::json;

enum class Label { kQuestion, kAnswer };

std::vector<std::string_view> LinesOf(std::string_view text) {
  std::vector<std::string_view> lines;
  while (true) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
    if (end == text.npos) return lines;
    text.remove_prefix(end + 1);
  }
}

bool IsRule(std::string_view line) {  // "===", "---", "***"
  line = StripUtf8(line);
  return line.size() >= 3 && line.find_first_not_of(line.front()) == line.npos &&
         (line.front() == '=' || line.front() == '-' || line.front() == '*' || line.front() == '_');
}

bool IsFence(std::string_view line) { return StripUtf8(line).starts_with("```"); }

// A label at the beginning of a line, and in `rest` what follows it.
std::optional<Label> LabelOf(std::string_view line, std::string_view& rest) {
  constexpr std::string_view kMarks = "*_#> \t";
  const auto skip = [&](std::string_view marks) {
    line.remove_prefix(std::min(line.find_first_not_of(marks), line.size()));
  };
  skip(kMarks);
  skip("0123456789");  // "2. Question:"
  skip(".) \t*_");
  const auto word = [&](std::string_view name) {
    if (line.size() < name.size()) return false;
    for (size_t i = 0; i < name.size(); ++i) {
      if (std::tolower(static_cast<unsigned char>(line[i])) != name[i]) return false;
    }
    line.remove_prefix(name.size());
    return true;
  };
  std::optional<Label> label;
  if (word("question") || word("q")) {
    label = Label::kQuestion;
  } else if (word("answer") || word("a")) {
    label = Label::kAnswer;
  } else {
    return std::nullopt;
  }
  skip(" \t*_");
  skip("0123456789");
  skip(" \t*_");
  if (!line.starts_with(':')) return std::nullopt;
  line.remove_prefix(1);
  skip(" \t*_");
  rest = line;
  return label;
}

std::string JsonText(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    throw ParseFault(ParseFault::Kind::kNoDialogue,
                     std::string("JSON without a text as \"") + key + "\"");
  }
  return std::string(StripUtf8(found->get_ref<const std::string&>()));
}

// Nothing if the text is no JSON, or deeper than anything that is read or copied.
std::optional<Json> Parsed(std::string_view text) {
  try {
    return ParseJson<Json>(text);
  } catch (const std::invalid_argument&) {
    return std::nullopt;
  }
}

// Nothing if the text is not JSON of this kind.
std::optional<ParsedDialogue> ParseJsonDialogue(const std::vector<std::string_view>& lines) {
  std::string body;
  for (const std::string_view line : lines) {
    if (!IsFence(line)) body.append(line).append("\n");
  }
  std::optional<Json> values = Parsed(body);
  if (!values) {
    values = Json::array();
    for (const std::string_view line : LinesOf(body)) {
      if (StripUtf8(line).empty()) continue;
      std::optional<Json> value = Parsed(line);
      if (!value) return std::nullopt;
      values->push_back(*std::move(value));
    }
  }
  if (values->is_object()) values = Json::array({*values});
  if (!values->is_array() || values->empty()) return std::nullopt;
  ParsedDialogue dialogue;
  for (const Json& value : *values) {
    if (!value.is_object()) return std::nullopt;
    dialogue.turns.push_back({JsonText(value, "question"), JsonText(value, "answer")});
  }
  return dialogue;
}

// "**bold**" becomes "bold"; marks that stand within a word or alone stay, for they may mean
// multiplication or a list.
void RemovePairs(std::string& text, std::string_view mark) {
  const auto is_space = [&](size_t at) {
    return at >= text.size() || std::isspace(static_cast<unsigned char>(text[at])) != 0;
  };
  const auto opens = [&](size_t at) {
    const bool within_word = at > 0 && std::isalnum(static_cast<unsigned char>(text[at - 1])) != 0;
    return !within_word && !is_space(at + mark.size());
  };
  for (size_t open = 0; (open = text.find(mark, open)) != text.npos;) {
    const size_t begin = open + mark.size();
    if (!opens(open)) {
      open = begin;
      continue;
    }
    size_t close = text.find(mark, begin + 1);
    while (close != text.npos && is_space(close - 1)) close = text.find(mark, close + mark.size());
    if (close == text.npos || text.find('\n', begin) < close) {
      open = begin;
      continue;
    }
    text.erase(close, mark.size());
    text.erase(open, mark.size());
    open = close - mark.size();
  }
}

}  // namespace

ParsedDialogue ParseDialogue(std::string_view text) {
  const auto lines = LinesOf(text);
  const std::string_view stripped = StripUtf8(text);
  if (stripped.starts_with('{') || stripped.starts_with('[') || stripped.starts_with("```")) {
    if (auto dialogue = ParseJsonDialogue(lines)) return *dialogue;
  }
  std::vector<std::pair<Label, std::string>> parts;
  for (const std::string_view line : lines) {
    std::string_view rest;
    if (const auto label = LabelOf(line, rest)) {
      parts.emplace_back(*label, rest);
    } else if (!parts.empty() && !IsRule(line) && !IsFence(line)) {
      parts.back().second.append("\n").append(line);
    }
  }
  if (parts.empty()) {
    throw ParseFault(ParseFault::Kind::kNoDialogue, "no line begins with Question: or Answer:");
  }
  ParsedDialogue dialogue;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Label expected = i % 2 == 0 ? Label::kQuestion : Label::kAnswer;
    if (parts[i].first != expected) {
      throw ParseFault(ParseFault::Kind::kAlternation,
                       "part " + std::to_string(i + 1) + " is " +
                           (expected == Label::kQuestion ? "an answer, expected a question"
                                                         : "a question, expected an answer"));
    }
    std::string content(StripUtf8(parts[i].second));
    if (expected == Label::kQuestion) {
      dialogue.turns.push_back({std::move(content), ""});
    } else {
      dialogue.turns.back().answer = std::move(content);
    }
  }
  if (parts.size() % 2 != 0) {
    dialogue.turns.pop_back();
    dialogue.open_end = true;
  }
  return dialogue;
}

std::string PlainText(std::string_view text) {
  std::string plain;
  bool empty_before = true;
  for (std::string_view line : LinesOf(text)) {
    line = StripUtf8Right(line);
    if (IsRule(line) || IsFence(line)) continue;
    if (line.starts_with('#')) {
      const size_t end = line.find_first_not_of('#');
      if (end <= 6 && end < line.size() && line[end] == ' ') line.remove_prefix(end + 1);
    }
    if (line.empty() && empty_before) continue;
    empty_before = line.empty();
    plain.append(line).append("\n");
  }
  RemovePairs(plain, "**");
  RemovePairs(plain, "__");
  RemovePairs(plain, "`");
  return std::string(StripUtf8(plain));
}

}  // namespace llava
