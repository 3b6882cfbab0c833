#pragma once

// Shares of right answers, and how sure figures are.

#include <cstdint>
#include <optional>
#include <span>

namespace llava {

// `right` of `asked`.
struct Share {
  int64_t right = 0, asked = 0;

  double value() const {
    return asked == 0 ? 0 : static_cast<double>(right) / static_cast<double>(asked);
  }
  Share& operator+=(const Share& other) {
    right += other.right;
    asked += other.asked;
    return *this;
  }
  bool operator==(const Share&) const = default;
};

struct Interval {
  double low = 0, high = 1;
};
// Where the true share lies with 95 % confidence (Wilson 1927); everything if nothing was asked.
Interval WilsonInterval(const Share& share);

// A figure over several seeds or runs.
struct Spread {
  double mean = 0;
  std::optional<double> deviation;  // of the sample (by n - 1); none where there is one value
};
// Throws std::invalid_argument for no values.
Spread SpreadOf(std::span<const double> values);

}  // namespace llava
