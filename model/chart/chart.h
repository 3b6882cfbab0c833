#pragma once

// Line charts and bar charts as pictures.

#include <filesystem>
#include <string>
#include <vector>

#include "model/chart/canvas.h"
#include "model/chart/chart_axis.h"

namespace llava {

// The colour of curve or series number `index`; they repeat after 8.
Colour SeriesColour(size_t index);
// As what stands behind it: the raw values under a smoothed curve.
Colour Pale(Colour colour);

struct ChartCurve {
  std::string name;          // in the legend; curves of one name share their entry
  size_t colour = 0;         // SeriesColour
  std::vector<double> x, y;  // equally many, finite
  bool dotted = false;       // a disc at every point: few values, far apart
  bool noisy = false;        // with more than 80 points: pale, with a smoothed curve on top
};

struct LineChart {
  std::string title, x_label;
  std::vector<ChartCurve> curves;
  bool log_y = false;  // values that are not positive are left out
};

// Where a chart has drawn its values.
struct ChartFrame {
  CanvasPoint top_left, bottom_right;
  ChartAxis x, y;
  CanvasPoint At(double x_value, double y_value) const;
};

// Draws charts below each other, `columns` side by side. Returns their frames in their order.
// Throws std::invalid_argument for a chart without values or lists of unequal length,
// std::runtime_error as Canvas::SavePng.
std::vector<ChartFrame> DrawLineCharts(const std::vector<LineChart>& charts, int columns,
                                       const std::filesystem::path& png);

struct BarSeries {
  std::string name;
  std::vector<double> values;     // one per group; NaN leaves a gap
  std::vector<double> low, high;  // ends of whiskers, one per group; or empty
};

struct BarChart {
  std::string title;
  std::vector<std::string> groups;
  std::vector<BarSeries> series;
};

// Bars grow from 0. Errors as DrawLineCharts.
ChartFrame DrawBarChart(const BarChart& chart, const std::filesystem::path& png);
// The middle of a bar in ChartFrame's x.
double BarMiddle(const BarChart& chart, size_t group, size_t series);

}  // namespace llava
