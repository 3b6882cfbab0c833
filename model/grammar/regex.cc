#include "model/grammar/regex.h"

#include <algorithm>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/grammar/json_rules.h"
#include "model/grammar/regex_parser.h"

namespace llava::grammar {

// Writes nodes into the automaton.
class RegexWriter {
 public:
  explicit RegexWriter(Regexes& regexes)
      : regexes_(regexes), builder_(regexes.builder_), spelling_(regexes.spelling_) {}

  void Add(const RegexNode& node, int32_t from, int32_t to) {
    switch (node.kind) {
      case RegexNode::Kind::kCharacters:
        return AddCharacters(PartsOf(node), from, to);
      case RegexNode::Kind::kAlternatives:
        for (const RegexNode& part : node.parts) Add(part, from, to);
        return;
      case RegexNode::Kind::kSequence:
        for (const RegexNode& part : node.parts) from = AddBehind(part, from);
        return builder_.AddEmpty(from, to);
      case RegexNode::Kind::kRepeat:
        break;
    }
    const RegexNode& part = node.parts.front();
    for (uint32_t i = 0; i < node.least; ++i) from = AddBehind(part, from);
    if (node.most == RegexNode::kNoEnd) {
      const int32_t loop = builder_.AddState();
      builder_.AddEmpty(from, loop);
      Add(part, loop, loop);
      return builder_.AddEmpty(loop, to);
    }
    for (uint32_t i = node.least; i < node.most; ++i) {
      builder_.AddEmpty(from, to);
      from = AddBehind(part, from);
    }
    builder_.AddEmpty(from, to);
  }

  // Any text.
  void AddAnything(int32_t from, int32_t to) {
    const int32_t loop = builder_.AddState();
    builder_.AddEmpty(from, loop);
    AddCharacters(Split({{0, 0x10FFFF}}), loop, loop);
    builder_.AddEmpty(loop, to);
  }

 private:
  int32_t AddBehind(const RegexNode& node, int32_t from) {
    const int32_t behind = builder_.AddState();
    Add(node, from, behind);
    return behind;
  }

  // Characters by the way they are written.
  struct Parts {
    CodePoints plain, escaped;
    std::optional<int32_t> beyond;  // ASCII: a rule
  };

  // Nodes are written as often as they are repeated, but split once.
  const Parts& PartsOf(const RegexNode& node) {
    const auto [entry, is_new] = parts_.try_emplace(&node);
    if (is_new) entry->second = Split(node.characters);
    return entry->second;
  }

  Parts Split(const CodePoints& set) {
    Parts parts;
    CodePoints beyond;
    const auto cut = [](const CodePoints& ranges, char32_t low, char32_t high, CodePoints& result) {
      for (const auto& [first, last] : ranges) {
        if (std::max(first, low) <= std::min(last, high)) {
          result.emplace_back(std::max(first, low), std::min(last, high));
        }
      }
    };
    const CodePoints all = Normalized(set);
    cut(all, 0x80, 0x10FFFF, beyond);
    if (spelling_ == Regexes::Spelling::kPlain) {
      cut(all, 0, 0x7F, parts.plain);
    } else {
      for (const auto& [low, high] :
           {std::pair<char32_t, char32_t>(0x20, '"' - 1), {'"' + 1, '\\' - 1}, {'\\' + 1, 0x7F}}) {
        cut(all, low, high, parts.plain);
      }
      cut(all, 0, 0x1F, parts.escaped);
      cut(all, '"', '"', parts.escaped);
      cut(all, '\\', '\\', parts.escaped);
    }
    if (!beyond.empty()) parts.beyond = RuleOf(beyond);
    return parts;
  }

  void AddCharacters(const Parts& parts, int32_t from, int32_t to) {
    AddCodePoints(builder_, from, parts.plain, to);
    AddEscaped(parts.escaped, parts.plain.empty() && !parts.beyond, from, to);
    if (parts.beyond) builder_.AddCall(from, *parts.beyond, to);
  }

  void AddEscaped(const CodePoints& set, bool alone, int32_t from, int32_t to) {
    std::vector<std::string> brief, others;
    for (const auto& [low, high] : set) {
      for (char32_t c = low; c <= high; ++c) {
        std::string text = EscapedJson(std::string(1, static_cast<char>(c)));
        (text.size() == 2 ? brief : others).push_back(std::move(text));
      }
    }
    if (!brief.empty()) {
      const int32_t escape = builder_.AddState();
      builder_.AddByte(from, '\\', escape);
      for (const std::string& text : brief) builder_.AddByte(escape, text[1], to);
    }
    if (!alone || !brief.empty()) return;
    for (const std::string& text : others) builder_.AddText(from, text, to);
  }

  int32_t RuleOf(const CodePoints& beyond) {
    const auto [entry, is_new] = regexes_.rules_.try_emplace(beyond, 0);
    if (is_new) {
      entry->second = builder_.AddRule();
      const int32_t end = builder_.AddState();
      builder_.SetFinal(end);
      AddCodePoints(builder_, builder_.start(entry->second), beyond, end);
    }
    return entry->second;
  }

  Regexes& regexes_;
  AutomatonBuilder& builder_;
  const Regexes::Spelling spelling_;
  std::unordered_map<const RegexNode*, Parts> parts_;
};

void Regexes::Add(std::string_view pattern, bool search, int32_t from, int32_t to) {
  RegexWriter writer(*this);
  for (const RegexBranch& branch : ParseRegex(pattern)) {
    const int32_t begin = builder_.AddState(), end = builder_.AddState();
    if (search && !branch.at_begin) {
      writer.AddAnything(from, begin);
    } else {
      builder_.AddEmpty(from, begin);
    }
    writer.Add(branch.node, begin, end);
    if (search && !branch.at_end) {
      writer.AddAnything(end, to);
    } else {
      builder_.AddEmpty(end, to);
    }
  }
}

}  // namespace llava::grammar
