#pragma once

// Scales of charts: round numbers for their ticks.

#include <string>
#include <vector>

namespace llava {

struct Tick {
  double value;
  std::string label;
};

// One axis of a chart, from `low` to `high`, which lie on ticks or enclose the data closely.
struct ChartAxis {
  double low = 0, high = 1;
  bool logarithmic = false;
  std::vector<Tick> ticks;

  // Where a value lies between the ends: 0 .. 1 inside.
  double Share(double value) const;
};

// Ticks at 1, 2 or 5 times a power of ten, at most `most` of them (at least 2). `grow`: the ends
// are moved out to the next ticks. Equal ends are moved apart.
ChartAxis RoundAxis(double low, double high, int most, bool grow);
// Ticks at powers of ten, and at 2 and 5 times these where few would fit otherwise. Throws
// std::invalid_argument unless 0 < low <= high.
ChartAxis LogAxis(double low, double high, int most);

// "0.05", "1200", "250k", "3e-05": short, and exact for round numbers.
std::string ShortNumber(double value);

}  // namespace llava
