#pragma once

// The parts of JSON texts as rules of an automaton. Texts have no white space at their ends and
// before colons and commas, and at most kMostSpace bytes of it elsewhere between tokens.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/grammar/automaton.h"
#include "model/grammar/code_points.h"

namespace llava::grammar {

inline constexpr int kMostSpace = 24;
// Digits of a number before and behind its point, and of its exponent.
inline constexpr int kMostDigits = 18, kMostFraction = 17, kMostExponent = 2;

// Makes each rule when it is first asked for. The builder must outlive it.
class JsonRules {
 public:
  explicit JsonRules(AutomatonBuilder& builder) : builder_(builder) {}

  int32_t Value();   // any
  int32_t Object();  // with any members
  int32_t Array();   // of any values
  int32_t String();  // with quotes
  int32_t Integer();
  int32_t Number();

  // A string of so many code points.
  int32_t String(uint64_t least, std::optional<uint64_t> most);
  // A string that is none of these.
  int32_t StringOtherThan(std::span<const std::string> texts);

  struct Member {
    std::string name;
    int32_t value;  // rule
    bool required;
  };
  // The members in this order; then, with a rule `others`, members of other names.
  int32_t Object(std::span<const Member> members, std::optional<int32_t> others);

  // `first` are the rules of the first elements, `rest` that of the others; none: there are no
  // others.
  int32_t Array(std::span<const int32_t> first, std::optional<int32_t> rest, uint64_t least,
                std::optional<uint64_t> most);

  // Optional white space behind `from`: where it has been read.
  int32_t Space(int32_t from);

 private:
  using Rules = std::map<std::string_view, int32_t>;
  // The rule of this name, made by `make` between its start and an end.
  template <typename Make>
  int32_t Once(std::string_view name, const Make& make);
  // Digits, `least` to `most` of them, between two states.
  void AddDigits(int32_t from, int least, int most, int32_t to);
  void AddPlainCharacters(int32_t from, int32_t to);
  // A character that is not ASCII, escaped or both.
  int32_t RareCharacter();
  int32_t MultiByte();

  AutomatonBuilder& builder_;
  Rules rules_;
};

// A text as it stands within quotes: escaped where JSON asks for it, in the shortest way.
std::string EscapedJson(std::string_view text);

}  // namespace llava::grammar
