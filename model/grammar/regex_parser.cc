#include "model/grammar/regex_parser.h"

#include <algorithm>
#include <string>
#include <utility>

#include "model/grammar/automaton.h"
#include "model/text/utf8.h"

namespace llava::grammar {
namespace {

constexpr int kDeepestGroups = 50;
constexpr uint32_t kMostRepeats = 10'000;

const CodePoints kDigits = {{'0', '9'}};
const CodePoints kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePoints kSpace = {{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                           {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                           {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const CodePoints kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

class Parser {
 public:
  explicit Parser(std::string_view pattern) : pattern_(pattern) {}

  std::vector<RegexBranch> Parse() {
    std::vector<RegexBranch> branches;
    do {
      RegexBranch branch;
      branch.at_begin = Take('^');
      branch.node = Sequence(0);
      branch.at_end = Take('$');
      branches.push_back(std::move(branch));
    } while (Take('|'));
    if (!AtEnd()) {
      Fail(Peek() == ')' ? "a ) without a ("
                         : "is supported only at the beginning and the end of the pattern");
    }
    return branches;
  }

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    const std::string there(CutUtf8(pattern_.substr(at_), 8));
    throw GrammarError("byte " + std::to_string(at_) + " (\"" + there + "\"): " + what);
  }

  bool AtEnd() const { return at_ >= pattern_.size(); }
  char Peek() const { return AtEnd() ? '\0' : pattern_[at_]; }
  bool Take(char c) {
    if (AtEnd() || pattern_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool Take(std::string_view text) {
    if (!pattern_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }

  char32_t TakeCharacter() {
    if (AtEnd()) Fail("the pattern ends too soon");
    const Utf8Char c = ReadUtf8(pattern_.substr(at_));
    if (c.state != Utf8Char::State::kWhole) Fail("is not UTF-8");
    at_ += c.size;
    return c.value;
  }

  RegexNode Alternatives(int depth) {
    RegexNode node;
    node.kind = RegexNode::Kind::kAlternatives;
    do {
      node.parts.push_back(Sequence(depth));
    } while (Take('|'));
    return node;
  }

  RegexNode Sequence(int depth) {
    RegexNode node;
    while (!AtEnd() && Peek() != '|' && Peek() != ')' && Peek() != '$') {
      node.parts.push_back(Repeated(Atom(depth)));
    }
    return node;
  }

  RegexNode Atom(int depth) {
    if (Take('(')) {
      if (depth == kDeepestGroups) Fail("too many groups within each other");
      if (Peek() == '?' && !Take("?:")) {
        const bool named = pattern_.substr(at_).starts_with("?<") && at_ + 2 < pattern_.size() &&
                           pattern_[at_ + 2] != '=' && pattern_[at_ + 2] != '!';
        if (!named) Fail("looking ahead or behind and flags are not supported");
        at_ = std::min(pattern_.find('>', at_), pattern_.size() - 1) + 1;
      }
      RegexNode node = Alternatives(depth + 1);
      if (Peek() == '$') Fail("is supported only at the end of the pattern");
      if (!Take(')')) Fail("a ( without a )");
      return node;
    }
    if (Take('[')) return Characters(Class());
    if (Take('.')) return Characters(Complement(kLineEnds));
    if (Take('\\')) return Characters(Escape(/*in_class=*/false));
    const char c = Peek();
    if (c == '^') Fail("is supported only at the beginning of the pattern");
    if (c == '*' || c == '+' || c == '?') Fail("nothing to repeat");
    if (c == '{' || c == '}' || c == ']') Fail("must be written with a \\ in front");
    const char32_t value = TakeCharacter();
    return Characters({{value, value}});
  }

  static RegexNode Characters(CodePoints set) {
    return {.kind = RegexNode::Kind::kCharacters,
            .characters = Normalized(std::move(set)),
            .parts = {}};
  }

  RegexNode Repeated(RegexNode node) {
    uint32_t least = 0, most = RegexNode::kNoEnd;
    if (Take('+')) {
      least = 1;
    } else if (Take('?')) {
      most = 1;
    } else if (Take('{')) {
      least = Number();
      most = !Take(',') ? least : Peek() == '}' ? RegexNode::kNoEnd : Number();
      if (!Take('}')) Fail("is no number of repeats");
      if (least > most) Fail("repeats from more to less");
    } else if (!Take('*')) {
      return node;
    }
    Take('?');  // as few as possible: the same texts
    if (Peek() == '*' || Peek() == '+' || Peek() == '?' || Peek() == '{') Fail("nothing to repeat");
    RegexNode repeat;
    repeat.kind = RegexNode::Kind::kRepeat;
    repeat.least = least;
    repeat.most = most;
    repeat.parts.push_back(std::move(node));
    return repeat;
  }

  uint32_t Number() {
    if (Peek() < '0' || Peek() > '9') Fail("is no number of repeats");
    uint32_t value = 0;
    while (Peek() >= '0' && Peek() <= '9') {
      value = 10 * value + static_cast<uint32_t>(Peek() - '0');
      if (value > kMostRepeats)
        Fail("repeats more than " + std::to_string(kMostRepeats) + " times");
      ++at_;
    }
    return value;
  }

  // Behind the bracket.
  CodePoints Class() {
    const bool negated = Take('^');
    CodePoints set;
    while (!Take(']')) {
      const CodePoints low = ClassItem();
      const bool single = low.size() == 1 && low[0].first == low[0].second;
      if (Peek() != '-' || at_ + 1 >= pattern_.size() || pattern_[at_ + 1] == ']') {
        set.insert(set.end(), low.begin(), low.end());
        continue;
      }
      ++at_;
      const CodePoints high = ClassItem();
      if (!single || high.size() != 1 || high[0].first != high[0].second ||
          low[0].first > high[0].first) {
        Fail("the range before this is none");
      }
      set.emplace_back(low[0].first, high[0].first);
    }
    return negated ? Complement(set) : set;
  }

  CodePoints ClassItem() {
    if (Take('\\')) return Escape(/*in_class=*/true);
    const char32_t c = TakeCharacter();
    return {{c, c}};
  }

  // Behind the backslash.
  CodePoints Escape(bool in_class) {
    const char c = Peek();
    const auto one = [](char32_t value) { return CodePoints{{value, value}}; };
    if (Take('d')) return kDigits;
    if (Take('D')) return Complement(kDigits);
    if (Take('w')) return kWord;
    if (Take('W')) return Complement(kWord);
    if (Take('s')) return kSpace;
    if (Take('S')) return Complement(kSpace);
    if (Take('t')) return one('\t');
    if (Take('n')) return one('\n');
    if (Take('r')) return one('\r');
    if (Take('f')) return one('\f');
    if (Take('v')) return one('\v');
    if (in_class && Take('b')) return one('\b');
    if (Take('x')) return one(Hex(2));
    if (Take('u')) return one(Unicode());
    constexpr std::string_view kMarks = "^$\\.*+?()[]{}|/-";
    if (c != '\0' && kMarks.find(c) != kMarks.npos) {
      ++at_;
      return one(static_cast<uint8_t>(c));
    }
    Fail("this escape is not supported");
  }

  char32_t Hex(int digits) {
    char32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      const char c = Peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) Fail("is no hexadecimal digit");
      value = 16 * value + static_cast<char32_t>(digit);
      ++at_;
    }
    return value;
  }

  char32_t Unicode() {
    if (Take('{')) {
      char32_t value = 0;
      while (Peek() != '}') {
        value = 16 * value + Hex(1);
        if (value > 0x10FFFF) Fail("is beyond Unicode");
      }
      ++at_;
      return Checked(value);
    }
    const char32_t high = Hex(4);
    if (high < 0xD800 || high > 0xDBFF || !Take("\\u")) return Checked(high);
    const char32_t low = Hex(4);
    if (low < 0xDC00 || low > 0xDFFF) Fail("half a character");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  char32_t Checked(char32_t value) const {
    if (value >= 0xD800 && value <= 0xDFFF) Fail("half a character");
    return value;
  }

  const std::string_view pattern_;
  size_t at_ = 0;
};

}  // namespace

std::vector<RegexBranch> ParseRegex(std::string_view pattern) { return Parser(pattern).Parse(); }

}  // namespace llava::grammar
