#pragma once

// The structure of a regular expression.

#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "model/grammar/code_points.h"

namespace llava::grammar {

struct RegexNode {
  enum class Kind : uint8_t { kCharacters, kSequence, kAlternatives, kRepeat };
  static constexpr uint32_t kNoEnd = std::numeric_limits<uint32_t>::max();

  Kind kind = Kind::kSequence;
  CodePoints characters;
  std::vector<RegexNode> parts;  // one of kRepeat; none: the empty text
  uint32_t least = 1, most = 1;  // of kRepeat; kNoEnd: any number
};

// One of the outermost alternatives.
struct RegexBranch {
  RegexNode node;
  bool at_begin = false, at_end = false;  // ^ and $
};

// Throws GrammarError: broken, or not supported, and at which byte.
std::vector<RegexBranch> ParseRegex(std::string_view pattern);

}  // namespace llava::grammar
