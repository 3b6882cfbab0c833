#pragma once

// Regular expressions as ECMA-262 has them (flag u), without what looks around or back.

#include <cstdint>
#include <map>
#include <string_view>

#include "model/grammar/automaton.h"
#include "model/grammar/code_points.h"

namespace llava::grammar {

class Regexes {
 public:
  // How the characters of a text are written: as they are, or as within the quotes of a JSON
  // string, escaped where needed and in the shortest way. There, control characters that take \u
  // are left out wherever others do.
  enum class Spelling { kPlain, kJson };

  // The builder must outlive it.
  Regexes(AutomatonBuilder& builder, Spelling spelling) : builder_(builder), spelling_(spelling) {}

  // Reads a text, between two states, that matches from its beginning to its end, or with `search`
  // one of which some part matches. Throws GrammarError: broken, or not supported, and where.
  void Add(std::string_view pattern, bool search, int32_t from, int32_t to);

 private:
  friend class RegexWriter;

  AutomatonBuilder& builder_;
  const Spelling spelling_;
  std::map<CodePoints, int32_t> rules_;  // of characters that are not ASCII
};

}  // namespace llava::grammar
