#include "model/chart/chart_axis.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>

namespace llava {

double ChartAxis::Share(double value) const {
  if (logarithmic) return std::log(value / low) / std::log(high / low);
  return (value - low) / (high - low);
}

std::string ShortNumber(double value) {
  char text[32];
  const double size = std::abs(value);
  if (size >= 1e9 || (size > 0 && size < 1e-3)) {
    std::snprintf(text, sizeof(text), "%.3g", value);
  } else if (size >= 1e6) {
    std::snprintf(text, sizeof(text), "%.4gM", value / 1e6);
  } else if (size >= 1e4) {
    std::snprintf(text, sizeof(text), "%.4gk", value / 1e3);
  } else {
    std::snprintf(text, sizeof(text), "%.4g", value);
  }
  return text;
}

ChartAxis RoundAxis(double low, double high, int most, bool grow) {
  if (!(high > low)) {
    const double margin = low == 0 ? 1 : std::abs(low) / 2;
    low -= margin;
    high += margin;
  }
  // The finest step of 1, 2 or 5 times a power of ten with few enough ticks.
  double power = std::pow(10, std::floor(std::log10((high - low) / most)));
  double step = 0;
  int64_t first = 0, last = 0;  // in steps
  for (int i = 0;; ++i) {
    constexpr double kFactors[] = {1, 2, 5};
    if (i > 0 && i % 3 == 0) power *= 10;
    step = kFactors[i % 3] * power;
    constexpr double kSlack = 1e-9;  // for ends that are round already
    first = static_cast<int64_t>(grow ? std::floor(low / step + kSlack)
                                      : std::ceil(low / step - kSlack));
    last = static_cast<int64_t>(grow ? std::ceil(high / step - kSlack)
                                     : std::floor(high / step + kSlack));
    if (last - first < most) break;
  }
  ChartAxis axis;
  axis.low = grow ? static_cast<double>(first) * step : low;
  axis.high = grow ? static_cast<double>(last) * step : high;
  for (int64_t i = first; i <= last; ++i) {
    const double value = static_cast<double>(i) * step;
    axis.ticks.push_back({value, ShortNumber(value)});
  }
  return axis;
}

ChartAxis LogAxis(double low, double high, int most) {
  if (!(low > 0) || !(high >= low)) {
    throw std::invalid_argument("a logarithmic axis needs values above 0, found " +
                                ShortNumber(low) + " to " + ShortNumber(high));
  }
  ChartAxis axis;
  axis.logarithmic = true;
  axis.low = low == high ? low / 2 : low;
  axis.high = low == high ? high * 2 : high;
  const int first = static_cast<int>(std::floor(std::log10(axis.low)));
  const int last = static_cast<int>(std::ceil(std::log10(axis.high)));
  const auto ticks_at = [&](std::initializer_list<int> factors, int every) {
    axis.ticks.clear();
    for (int power = first; power <= last; power += every) {
      for (const int factor : factors) {
        const double value = factor * std::pow(10, power);
        if (value >= axis.low * (1 - 1e-9) && value <= axis.high * (1 + 1e-9)) {
          axis.ticks.push_back({value, ShortNumber(value)});
        }
      }
    }
    return static_cast<int>(axis.ticks.size());
  };
  if (last - first <= 2 && ticks_at({1, 2, 3, 4, 5, 6, 7, 8, 9}, 1) <= most) return axis;
  if (ticks_at({1, 2, 5}, 1) <= most) return axis;
  for (int every = 1; ticks_at({1}, every) > most; ++every) {
  }
  return axis;
}

}  // namespace llava
