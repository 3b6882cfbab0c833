#include "server/gateway/raw_json.h"

#include <cstddef>
#include <nlohmann/json.hpp>

namespace llava {
namespace {

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

size_t SkipSpace(std::string_view json, size_t at) {
  while (at < json.size() && IsSpace(json[at])) ++at;
  return at;
}

// Behind the text that begins at `at`.
size_t SkipString(std::string_view json, size_t at) {
  for (++at; at < json.size() && json[at] != '"'; ++at) {
    if (json[at] == '\\') ++at;
  }
  return at + 1;
}

// Behind the value that begins at `at`.
size_t SkipValue(std::string_view json, size_t at) {
  int depth = 0;
  while (at < json.size()) {
    const char c = json[at];
    if (c == '"') {
      at = SkipString(json, at);
    } else if (c == '{' || c == '[') {
      ++depth;
      ++at;
    } else if (c == '}' || c == ']') {
      if (depth == 0) return at;  // of what is around a number or word
      --depth;
      ++at;
    } else if (depth == 0 && (c == ',' || IsSpace(c))) {
      return at;
    } else {
      ++at;
      continue;  // within a number or word
    }
    if (depth == 0) return at;
  }
  return at;
}

}  // namespace

std::optional<std::string_view> RawMember(std::string_view json,
                                          std::span<const std::string_view> path) {
  if (path.empty()) return json;
  if (json.starts_with("\xEF\xBB\xBF")) json.remove_prefix(3);  // a mark that readers pass over
  size_t at = SkipSpace(json, 0);
  if (at >= json.size() || json[at] != '{') return std::nullopt;
  std::optional<std::string_view> found;
  at = SkipSpace(json, at + 1);
  while (at < json.size() && json[at] == '"') {
    const size_t name_end = SkipString(json, at);
    const std::string_view name = json.substr(at, name_end - at);
    const size_t colon = SkipSpace(json, name_end);
    const size_t begin = SkipSpace(json, colon + 1);
    const size_t end = SkipValue(json, begin);
    if (nlohmann::json::parse(name) == path.front()) found = json.substr(begin, end - begin);
    at = SkipSpace(json, end);
    if (at >= json.size() || json[at] != ',') break;
    at = SkipSpace(json, at + 1);
  }
  return found ? RawMember(*found, path.subspan(1)) : std::nullopt;
}

}  // namespace llava
