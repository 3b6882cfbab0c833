#include "model/grammar/number_range.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <tuple>

#include "model/grammar/json_rules.h"

namespace llava::grammar {
namespace {

// Numbers without a sign between two bounds without one.
class Magnitudes {
 public:
  Magnitudes(AutomatonBuilder& builder, Bound low, std::optional<Bound> high, bool integer,
             int32_t end)
      : builder_(builder),
        low_(std::move(low)),
        high_(std::move(high)),
        integer_(integer),
        end_(end) {}

  void Add(int32_t from) {
    const size_t most = high_ ? high_->value.whole.size() : kMostDigits;
    for (size_t size = low_.value.whole.size(); size <= most; ++size) {
      const Place place{.size = size,
                        .at_low = size == low_.value.whole.size(),
                        .at_high = high_ && size == high_->value.whole.size()};
      AddDigits(from, place);
    }
  }

 private:
  // So many digits have been read, which are those of a bound so far or lie strictly between.
  struct Place {
    size_t size = 0;      // digits before the point
    size_t whole = 0;     // of which were read
    size_t fraction = 0;  // digits behind it that were
    bool at_low = false, at_high = false;
    bool operator<(const Place& other) const { return Key() < other.Key(); }

   private:
    std::tuple<size_t, size_t, bool, bool> Key() const {
      // Away from both bounds only what is left counts.
      return {size - whole, fraction + (at_low || at_high ? 1000 * (whole + 1) : 0), at_low,
              at_high};
    }
  };

  static char DigitAt(const std::string& digits, size_t i) {
    return i < digits.size() ? digits[i] : '0';
  }
  char DigitOf(const Decimal& bound, const Place& place) const {
    return place.whole < place.size ? bound.whole[place.whole]
                                    : DigitAt(bound.fraction, place.fraction);
  }

  // The digits that may follow.
  void AddDigits(int32_t from, const Place& place) {
    const bool whole = place.whole < place.size;
    char least = whole && place.whole == 0 && place.size > 1 ? '1' : '0', most = '9';
    if (place.at_low) least = std::max(least, DigitOf(low_.value, place));
    if (place.at_high) most = std::min(most, DigitOf(high_->value, place));
    for (char digit = least; digit <= most; ++digit) {
      Place next = place;
      ++(whole ? next.whole : next.fraction);
      next.at_low &= digit == DigitOf(low_.value, place);
      next.at_high = next.at_high && digit == DigitOf(high_->value, place);
      builder_.AddByte(from, digit, Behind(next));
    }
  }

  // The number so far is one of those that are wanted.
  bool MayEnd(const Place& place) const {
    const auto equal = [&place](const Decimal& bound) {
      return place.fraction >= bound.fraction.size();
    };
    if (place.at_low && (!equal(low_.value) || low_.exclusive)) return false;
    return !(place.at_high && high_->exclusive && equal(high_->value));
  }

  int32_t Behind(const Place& place) {
    const auto [entry, is_new] = states_.try_emplace(place, 0);
    if (!is_new) return entry->second;
    const int32_t state = builder_.AddState();
    entry->second = state;
    if (place.whole < place.size) {
      AddDigits(state, place);
      return state;
    }
    if (MayEnd(place)) builder_.AddEmpty(state, end_);
    if (place.fraction > 0) {
      if (place.fraction < kMostFraction) AddDigits(state, place);
    } else if (!integer_) {
      const int32_t point = builder_.AddState();
      builder_.AddByte(state, '.', point);
      AddDigits(point, place);
    }
    return state;
  }

  AutomatonBuilder& builder_;
  const Bound low_;
  const std::optional<Bound> high_;
  const bool integer_;
  const int32_t end_;
  std::map<Place, int32_t> states_;
};

Bound Negated(Bound bound) {
  bound.value.negative = !bound.value.negative;
  return bound;
}

}  // namespace

Decimal ParseDecimal(std::string_view text) {
  Decimal result;
  result.negative = text.starts_with('-');
  std::string digits;
  int64_t point = -1, exponent = 0;
  for (size_t i = result.negative ? 1 : 0; i < text.size(); ++i) {
    if (text[i] == 'e' || text[i] == 'E') {
      exponent =
          std::clamp(std::atoll(std::string(text.substr(i + 1)).c_str()), -100'000LL, 100'000LL);
      break;
    }
    if (text[i] == '.') {
      point = static_cast<int64_t>(digits.size());
    } else {
      digits += text[i];
    }
  }
  if (point < 0) point = static_cast<int64_t>(digits.size());
  point += exponent;
  const size_t zeros = std::min(digits.find_first_not_of('0'), digits.size());
  digits.erase(0, zeros);
  point -= static_cast<int64_t>(zeros);
  digits.erase(digits.find_last_not_of('0') + 1);
  if (digits.empty()) return {};
  if (point > kMostDigits || static_cast<int64_t>(digits.size()) - point > kMostFraction) {
    throw GrammarError("is a bound of more than " + std::to_string(kMostDigits) +
                       " digits before or " + std::to_string(kMostFraction) + " behind the point");
  }
  if (point < 0) {
    digits.insert(0, static_cast<size_t>(-point), '0');
    point = 0;
  }
  while (static_cast<int64_t>(digits.size()) < point) digits += '0';
  const auto size = static_cast<size_t>(point);
  if (size > 0) result.whole = digits.substr(0, size);
  result.fraction = digits.substr(size);
  return result;
}

int32_t NumberBetween(AutomatonBuilder& builder, const std::optional<Bound>& low,
                      const std::optional<Bound>& high, bool integer) {
  const int32_t rule = builder.AddRule(), end = builder.AddState();
  builder.SetFinal(end);
  const Bound zero;
  const auto is_negative = [](const std::optional<Bound>& bound) {
    return bound && bound->value.negative;
  };
  if (!is_negative(high)) {
    const Bound least = low && !low->value.negative ? *low : zero;
    Magnitudes(builder, least, high, integer, end).Add(builder.start(rule));
  }
  if (!low || is_negative(low)) {
    const int32_t minus = builder.AddText(builder.start(rule), "-");
    const Bound least = is_negative(high) ? Negated(*high)
                        : high && high->value.whole == "0" && high->value.fraction.empty() ? *high
                                                                                           : zero;
    const auto most = low ? std::optional(Negated(*low)) : std::nullopt;
    Magnitudes(builder, least, most, integer, end).Add(minus);
  }
  return rule;
}

}  // namespace llava::grammar
