#pragma once

// Numbers between two bounds, digit by digit.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "model/grammar/automaton.h"

namespace llava::grammar {

// Digits before and behind the point; no zeros that say nothing.
struct Decimal {
  bool negative = false;
  std::string whole = "0";
  std::string fraction;
};
// Of the text of a JSON number. Throws GrammarError if it has more than kMostDigits or
// kMostFraction of them.
Decimal ParseDecimal(std::string_view text);

struct Bound {
  Decimal value;
  bool exclusive = false;
};
// A rule for numbers without exponent from `low` to `high`; `integer`: without a point. If no
// number fits, its start leads nowhere.
int32_t NumberBetween(AutomatonBuilder& builder, const std::optional<Bound>& low,
                      const std::optional<Bound>& high, bool integer);

}  // namespace llava::grammar
