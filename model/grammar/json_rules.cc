#include "model/grammar/json_rules.h"

#include <algorithm>

#include "model/text/utf8.h"

namespace llava::grammar {
namespace {

struct Escape {
  char32_t value;
  char letter;
};
constexpr Escape kShortEscapes[] = {{'"', '"'},  {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'},
                                    {'\n', 'n'}, {'\r', 'r'},  {'\t', 't'}};

char ShortEscapeOf(char32_t c) {
  for (const Escape& escape : kShortEscapes) {
    if (escape.value == c) return escape.letter;
  }
  return 0;
}

void AddHex(AutomatonBuilder& builder, int32_t from, int count, int32_t to) {
  for (; count > 0; --count) {
    const int32_t next = count == 1 ? to : builder.AddState();
    for (const auto& [low, high] :
         {std::pair('0', '9'), std::pair('a', 'f'), std::pair('A', 'F')}) {
      builder.AddBytes(from, static_cast<uint8_t>(low), static_cast<uint8_t>(high), next);
    }
    from = next;
  }
}

// Behind "\u": a code unit that is no surrogate, or a pair of them.
void AddUnicodeEscape(AutomatonBuilder& builder, int32_t from, int32_t to) {
  const int32_t three = builder.AddState();
  for (const auto& [low, high] : {std::pair('0', '9'), std::pair('a', 'c'), std::pair('e', 'f'),
                                  std::pair('A', 'C'), std::pair('E', 'F')}) {
    builder.AddBytes(from, static_cast<uint8_t>(low), static_cast<uint8_t>(high), three);
  }
  AddHex(builder, three, 3, to);
  const int32_t d = builder.AddState(), plain = builder.AddState(), high_half = builder.AddState();
  for (const char letter : {'d', 'D'}) builder.AddByte(from, letter, d);
  builder.AddBytes(d, '0', '7', plain);
  AddHex(builder, plain, 2, to);
  builder.AddBytes(d, '8', '9', high_half);
  for (const char letter : {'a', 'b', 'A', 'B'}) builder.AddByte(d, letter, high_half);
  const int32_t pair = builder.AddState();
  AddHex(builder, high_half, 2, pair);
  const int32_t low_d = builder.AddText(pair, "\\u");
  const int32_t low_half = builder.AddState(), last = builder.AddState();
  for (const char letter : {'d', 'D'}) builder.AddByte(low_d, letter, low_half);
  for (const auto& [low, high] : {std::pair('c', 'f'), std::pair('C', 'F')}) {
    builder.AddBytes(low_half, static_cast<uint8_t>(low), static_cast<uint8_t>(high), last);
  }
  AddHex(builder, last, 2, to);
}

}  // namespace

std::string EscapedJson(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (const char letter = ShortEscapeOf(byte); letter != 0) {
      result += {'\\', letter};
    } else if (byte < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      result += {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      result += c;
    }
  }
  return result;
}

template <typename Make>
int32_t JsonRules::Once(std::string_view name, const Make& make) {
  if (const auto there = rules_.find(name); there != rules_.end()) return there->second;
  const int32_t rule = builder_.AddRule();
  rules_.emplace(name, rule);  // before it is made: it may call itself
  const int32_t end = builder_.AddState();
  builder_.SetFinal(end);
  make(builder_.start(rule), end);
  return rule;
}

int32_t JsonRules::Space(int32_t from) {
  const int32_t space = Once("space", [this](int32_t start, int32_t) {
    int32_t state = start;
    for (int i = 0; i < kMostSpace; ++i) {
      const int32_t next = builder_.AddState();
      for (const char c : {' ', '\n', '\t', '\r'}) builder_.AddByte(state, c, next);
      builder_.SetFinal(next);
      state = next;
    }
  });
  const int32_t behind = builder_.AddState();
  builder_.AddEmpty(from, behind);
  builder_.AddCall(from, space, behind);
  return behind;
}

void JsonRules::AddDigits(int32_t from, int least, int most, int32_t to) {
  for (int i = 0; i < most; ++i) {
    if (i >= least) builder_.AddEmpty(from, to);
    const int32_t next = builder_.AddState();
    builder_.AddBytes(from, '0', '9', next);
    from = next;
  }
  builder_.AddEmpty(from, to);
}

int32_t JsonRules::Integer() {
  return Once("integer", [this](int32_t start, int32_t end) {
    const int32_t digits = builder_.AddState(), more = builder_.AddState();
    builder_.AddByte(start, '-', digits);
    builder_.AddEmpty(start, digits);
    builder_.AddByte(digits, '0', end);
    builder_.AddBytes(digits, '1', '9', more);
    AddDigits(more, 0, kMostDigits - 1, end);
  });
}

int32_t JsonRules::Number() {
  return Once("number", [this](int32_t start, int32_t end) {
    const int32_t whole = builder_.AddState(), mantissa = builder_.AddState();
    builder_.AddCall(start, Integer(), whole);
    builder_.AddEmpty(whole, mantissa);
    const int32_t fraction = builder_.AddState(), exponent = builder_.AddState();
    builder_.AddByte(whole, '.', fraction);
    AddDigits(fraction, 1, kMostFraction, mantissa);
    builder_.AddEmpty(mantissa, end);
    const int32_t sign = builder_.AddState();
    for (const char e : {'e', 'E'}) builder_.AddByte(mantissa, e, sign);
    builder_.AddEmpty(sign, exponent);
    for (const char c : {'+', '-'}) builder_.AddByte(sign, c, exponent);
    AddDigits(exponent, 1, kMostExponent, end);
  });
}

void JsonRules::AddPlainCharacters(int32_t from, int32_t to) {
  builder_.AddBytes(from, 0x20, '"' - 1, to);
  builder_.AddBytes(from, '"' + 1, '\\' - 1, to);
  builder_.AddBytes(from, '\\' + 1, 0x7F, to);
}

int32_t JsonRules::MultiByte() {
  return Once("multi-byte", [this](int32_t start, int32_t end) {
    AddCodePoints(builder_, start, {{0x80, 0x10FFFF}}, end);
  });
}

int32_t JsonRules::RareCharacter() {
  return Once("rare character", [this](int32_t start, int32_t end) {
    AddCodePoints(builder_, start, {{0x80, 0x10FFFF}}, end);
    const int32_t escape = builder_.AddState(), unicode = builder_.AddState();
    builder_.AddByte(start, '\\', escape);
    for (const char letter : {'"', '\\', '/', 'b', 'f', 'n', 'r', 't'}) {
      builder_.AddByte(escape, letter, end);
    }
    builder_.AddByte(escape, 'u', unicode);
    AddUnicodeEscape(builder_, unicode, end);
  });
}

int32_t JsonRules::String() {
  return Once("string", [this](int32_t start, int32_t end) {
    const int32_t body = builder_.AddState();
    builder_.AddByte(start, '"', body);
    AddPlainCharacters(body, body);
    builder_.AddCall(body, RareCharacter(), body);
    builder_.AddByte(body, '"', end);
  });
}

int32_t JsonRules::String(uint64_t least, std::optional<uint64_t> most) {
  if (least == 0 && !most) return String();
  const int32_t rule = builder_.AddRule(), end = builder_.AddState();
  builder_.SetFinal(end);
  int32_t state = builder_.AddText(builder_.start(rule), "\"");
  const auto add = [&](int32_t next) {
    AddPlainCharacters(state, next);
    builder_.AddCall(state, RareCharacter(), next);
    state = next;
  };
  for (uint64_t i = 0; i < most.value_or(least); ++i) {
    if (i >= least) builder_.AddByte(state, '"', end);
    add(builder_.AddState());
  }
  builder_.AddByte(state, '"', end);
  if (!most) add(state);
  return rule;
}

int32_t JsonRules::StringOtherThan(std::span<const std::string> texts) {
  if (texts.empty()) return String();
  // Of the ways to write a character only the shortest is allowed, so that texts are told apart by
  // their bytes: no \u, no \/.
  const int32_t any = Once("rest of a key", [this](int32_t start, int32_t end) {
    AddPlainCharacters(start, start);
    builder_.AddCall(start, MultiByte(), start);
    const int32_t escape = builder_.AddState();
    builder_.AddByte(start, '\\', escape);
    for (const Escape& each : kShortEscapes) builder_.AddByte(escape, each.letter, start);
    builder_.AddByte(start, '"', end);
  });
  const int32_t rule = builder_.AddRule(), end = builder_.AddState(), other = builder_.AddState();
  builder_.SetFinal(end);
  builder_.AddCall(other, any, end);
  struct Node {
    std::map<char32_t, size_t> next;
    bool ends = false;
  };
  std::vector<Node> nodes(1);
  for (const std::string& text : texts) {
    size_t node = 0;
    for (std::string_view rest = text; !rest.empty();) {
      const Utf8Char c = ReadUtf8(rest);
      rest.remove_prefix(c.size);
      const auto [entry, is_new] = nodes[node].next.try_emplace(c.value, nodes.size());
      node = entry->second;
      if (is_new) nodes.emplace_back();
    }
    nodes[node].ends = true;
  }
  std::vector<int32_t> states(nodes.size());
  for (int32_t& state : states) state = builder_.AddState();
  builder_.AddByte(builder_.start(rule), '"', states[0]);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const int32_t from = states[i], escape = builder_.AddState();
    CodePoints named = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}, beyond;
    builder_.AddByte(from, '\\', escape);
    for (const Escape& each : kShortEscapes) {
      const auto next = nodes[i].next.find(each.value);
      builder_.AddByte(escape, each.letter,
                       next == nodes[i].next.end() ? other : states[next->second]);
    }
    for (const auto& [c, next] : nodes[i].next) {
      if (c < 0x20 || c == '"' || c == '\\') continue;  // as an escape, or not at all
      named.emplace_back(c, c);
      AddCodePoints(builder_, from, {{c, c}}, states[next]);
      if (c > 0x7F) beyond.emplace_back(c, c);
    }
    named.emplace_back(0x80, 0x10FFFF);
    AddCodePoints(builder_, from, Complement(named), other);
    if (beyond.empty()) {
      builder_.AddCall(from, MultiByte(), other);
    } else {
      beyond.emplace_back(0, 0x7F);
      AddCodePoints(builder_, from, Complement(beyond), other);
    }
    if (!nodes[i].ends) builder_.AddByte(from, '"', end);
  }
  return rule;
}

int32_t JsonRules::Object(std::span<const Member> members, std::optional<int32_t> others) {
  const int32_t rule = builder_.AddRule(/*nests=*/true), end = builder_.AddState();
  builder_.SetFinal(end);
  const size_t n = members.size();
  std::vector<int32_t> first(n + 1), next(n + 1), rest(n + 1);
  for (size_t i = 0; i <= n; ++i) {
    first[i] = builder_.AddState();  // no member was written, this one may be
    next[i] = builder_.AddState();   // behind a comma
    rest[i] = builder_.AddState();   // behind a member
  }
  builder_.AddEmpty(Space(builder_.AddText(builder_.start(rule), "{")), first[0]);
  const int32_t close = builder_.AddState();
  builder_.AddByte(Space(close), '}', end);
  builder_.AddByte(first[n], '}', end);
  bool may_close = true;
  for (size_t i = n + 1; i-- > 0;) {
    if (i < n) may_close &= !members[i].required;
    if (may_close) builder_.AddEmpty(rest[i], close);
    if (i == n && !others) continue;
    builder_.AddEmpty(Space(builder_.AddText(rest[i], ",")), next[i]);
  }
  for (size_t i = 0; i < n; ++i) {
    const int32_t name = builder_.AddState();
    builder_.AddEmpty(first[i], name);
    builder_.AddEmpty(next[i], name);
    std::string text = EscapedJson(members[i].name);
    text.insert(text.begin(), '"');
    text += "\":";
    builder_.AddCall(Space(builder_.AddText(name, text)), members[i].value, rest[i + 1]);
    if (members[i].required) continue;
    builder_.AddEmpty(first[i], first[i + 1]);
    builder_.AddEmpty(next[i], next[i + 1]);
  }
  if (others) {
    std::vector<std::string> names;
    for (const Member& member : members) names.push_back(member.name);
    const int32_t name = builder_.AddState(), colon = builder_.AddState();
    builder_.AddEmpty(first[n], name);
    builder_.AddEmpty(next[n], name);
    builder_.AddCall(name, StringOtherThan(names), colon);
    builder_.AddCall(Space(builder_.AddText(colon, ":")), *others, rest[n]);
  }
  return rule;
}

int32_t JsonRules::Array(std::span<const int32_t> first, std::optional<int32_t> rest,
                         uint64_t least, std::optional<uint64_t> most) {
  const int32_t rule = builder_.AddRule(/*nests=*/true), end = builder_.AddState(),
                close = builder_.AddState();
  builder_.SetFinal(end);
  builder_.AddByte(Space(close), ']', end);
  const int32_t begin = Space(builder_.AddText(builder_.start(rule), "["));
  if (least == 0) builder_.AddByte(begin, ']', end);
  // As many elements as differ from those behind them are written out.
  const uint64_t written = most.value_or(std::max<uint64_t>({least, first.size(), 1}));
  int32_t state = begin;
  for (uint64_t i = 0; i < written; ++i) {
    if (i >= first.size() && !rest) break;
    const int32_t behind = builder_.AddState();
    builder_.AddCall(state, i < first.size() ? first[i] : *rest, behind);
    if (i + 1 >= least) builder_.AddEmpty(behind, close);
    state = Space(builder_.AddText(behind, ","));
    if (!most && rest && i + 1 == written) builder_.AddCall(state, *rest, behind);
  }
  return rule;
}

int32_t JsonRules::Array() {
  return Once("array", [this](int32_t start, int32_t end) {
    builder_.AddCall(start, Array({}, Value(), 0, std::nullopt), end);
  });
}

int32_t JsonRules::Object() {
  return Once("object", [this](int32_t start, int32_t end) {
    builder_.AddCall(start, Object({}, Value()), end);
  });
}

int32_t JsonRules::Value() {
  return Once("value", [this](int32_t start, int32_t end) {
    builder_.AddCall(start, String(), end);
    builder_.AddCall(start, Number(), end);
    for (const char* text : {"true", "false", "null"}) builder_.AddText(start, text, end);
    builder_.AddCall(start, Array(), end);
    builder_.AddCall(start, Object(), end);
  });
}

}  // namespace llava::grammar
