#include "model/chart/chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>

namespace llava {
namespace {

constexpr Colour kInk = {40, 40, 46};
constexpr Colour kFaint = {110, 110, 118};
constexpr Colour kGrid = {228, 228, 232};
constexpr Colour kFrame = {150, 150, 158};
constexpr double kTitleSize = 11, kTextSize = 8.5;  // height of capitals, pixels

constexpr int kPanelWidth = 760, kPanelHeight = 430;
constexpr double kLeft = 66, kRight = 22, kTop = 44, kBottom = 46;
constexpr double kLegendLine = 20;
constexpr int kMostXTicks = 9, kMostYTicks = 8;
constexpr size_t kSmoothFrom = 80;  // points
constexpr size_t kWindows = 40;     // smoothing takes this part of the points together

// Legend entries beside each other in rows as wide as the chart; returns the rows used.
struct LegendEntry {
  std::string name;
  Colour colour;
};
int DrawLegend(Canvas* canvas, const std::vector<LegendEntry>& entries, CanvasPoint from,
               double width) {
  constexpr double kMark = 18, kGap = 6, kBetween = 22;
  double x = 0;
  int rows = entries.empty() ? 0 : 1;
  for (const LegendEntry& entry : entries) {
    const double needed = kMark + kGap + Canvas::TextWidth(entry.name, kTextSize);
    if (x > 0 && x + needed > width) {
      x = 0;
      ++rows;
    }
    if (canvas) {
      const double left = from.x + x, base = from.y + (rows - 1) * kLegendLine;
      canvas->Box({left, base - 6}, {left + kMark, base - 2}, entry.colour);
      canvas->Text(entry.name, {left + kMark + kGap, base}, 0, kTextSize, kInk);
    }
    x += needed + kBetween;
  }
  return rows;
}

void DrawTitle(Canvas& canvas, const std::string& title, CanvasPoint corner) {
  canvas.Text(title, {corner.x, corner.y + 24}, 0, kTitleSize, kInk, /*bold=*/true);
}

// Grid lines and numbers of the vertical axis.
void DrawYAxis(Canvas& canvas, const ChartFrame& frame) {
  for (const Tick& tick : frame.y.ticks) {
    const double y = frame.At(frame.x.low, tick.value).y;
    canvas.Line({frame.top_left.x, y}, {frame.bottom_right.x, y}, kGrid, 1);
    canvas.Text(tick.label, {frame.top_left.x - 8, y + kTextSize / 2}, 1, kTextSize, kFaint);
  }
}

void DrawFrame(Canvas& canvas, const ChartFrame& frame) {
  const CanvasPoint a = frame.top_left, b = frame.bottom_right;
  canvas.Line({a.x, a.y}, {a.x, b.y}, kFrame, 1);
  canvas.Line({a.x, b.y}, {b.x, b.y}, kFrame, 1);
}

// The value at each point of the straight line that fits it and its neighbours best: unlike a mean,
// it does not lag behind a slope at the ends. `logarithmic`: the same of the logarithms.
std::vector<double> Smoothed(std::vector<double> values, bool logarithmic) {
  const size_t window = values.size() / kWindows;
  if (logarithmic) {
    for (double& value : values) value = std::log(value);
  }
  std::vector<double> smoothed(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t begin = i - std::min(i, window / 2);
    const size_t end = std::min(values.size(), i + window / 2 + 1);
    double n = 0, x = 0, y = 0, xx = 0, xy = 0;  // sums, x counted from point i
    for (size_t j = begin; j < end; ++j) {
      const double offset = static_cast<double>(j) - static_cast<double>(i);
      n += 1;
      x += offset;
      y += values[j];
      xx += offset * offset;
      xy += offset * values[j];
    }
    const double spread = n * xx - x * x;
    smoothed[i] = spread > 0 ? (y * xx - x * xy) / spread : y / n;
    if (logarithmic) smoothed[i] = std::exp(smoothed[i]);
  }
  return smoothed;
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

// The curve's values that the axis can show.
ChartCurve Shown(const ChartCurve& curve, const LineChart& chart) {
  if (curve.x.size() != curve.y.size()) {
    throw std::invalid_argument("chart \"" + chart.title + "\": curve \"" + curve.name + "\" has " +
                                std::to_string(curve.x.size()) + " positions for " +
                                std::to_string(curve.y.size()) + " values");
  }
  ChartCurve shown = curve;
  shown.x.clear();
  shown.y.clear();
  for (size_t i = 0; i < curve.x.size(); ++i) {
    if (chart.log_y && curve.y[i] <= 0) continue;
    shown.x.push_back(curve.x[i]);
    shown.y.push_back(curve.y[i]);
  }
  return shown;
}

ChartFrame DrawLineChart(Canvas& canvas, const LineChart& chart, CanvasPoint corner) {
  std::vector<ChartCurve> curves;
  std::vector<LegendEntry> legend;
  Range x, y;
  for (const ChartCurve& curve : chart.curves) {
    curves.push_back(Shown(curve, chart));
    for (const double value : curves.back().x) x.Add(value);
    for (const double value : curves.back().y) y.Add(value);
    const bool known = std::any_of(legend.begin(), legend.end(), [&](const LegendEntry& entry) {
      return entry.name == curve.name;
    });
    if (!known && !curve.name.empty()) legend.push_back({curve.name, SeriesColour(curve.colour)});
  }
  if (x.low > x.high) {
    throw std::invalid_argument("chart \"" + chart.title + "\" has no values to show");
  }

  if (x.low > 0 && x.low < x.high / 3) x.low = 0;
  const double width = kPanelWidth - kLeft - kRight;
  const int rows = DrawLegend(nullptr, legend, {}, width);
  ChartFrame frame;
  frame.top_left = {corner.x + kLeft, corner.y + kTop + rows * kLegendLine};
  frame.bottom_right = {corner.x + kPanelWidth - kRight, corner.y + kPanelHeight - kBottom};
  frame.x = RoundAxis(x.low, x.high, kMostXTicks, /*grow=*/false);
  frame.y = chart.log_y ? LogAxis(y.low / 1.1, y.high * 1.1, kMostYTicks)
                        : RoundAxis(y.low, y.high, kMostYTicks, /*grow=*/true);
  DrawTitle(canvas, chart.title, {corner.x + kLeft, corner.y});
  DrawLegend(&canvas, legend, {corner.x + kLeft, corner.y + kTop + 2}, width);
  DrawYAxis(canvas, frame);
  for (const Tick& tick : frame.x.ticks) {
    const double at = frame.At(tick.value, frame.y.low).x;
    canvas.Line({at, frame.top_left.y}, {at, frame.bottom_right.y}, kGrid, 1);
    canvas.Text(tick.label, {at, frame.bottom_right.y + 17}, 0.5, kTextSize, kFaint);
  }
  canvas.Text(chart.x_label,
              {(frame.top_left.x + frame.bottom_right.x) / 2, frame.bottom_right.y + 36}, 0.5,
              kTextSize, kFaint);
  DrawFrame(canvas, frame);

  constexpr double kMargin = 3;  // for discs and thick lines at the ends
  canvas.Clip({frame.top_left.x - kMargin, frame.top_left.y - kMargin},
              {frame.bottom_right.x + kMargin, frame.bottom_right.y + kMargin});
  const auto draw = [&](const std::vector<double>& xs, const std::vector<double>& ys, Colour colour,
                        double thickness) {
    std::vector<CanvasPoint> points;
    for (size_t i = 0; i < xs.size(); ++i) points.push_back(frame.At(xs[i], ys[i]));
    canvas.Curve(points, colour, thickness);
  };
  // All raw values first, so that no smooth curve is hidden.
  const auto smooth = [](const ChartCurve& curve) {
    return curve.noisy && curve.x.size() > kSmoothFrom;
  };
  for (const ChartCurve& curve : curves) {
    if (smooth(curve)) draw(curve.x, curve.y, Pale(SeriesColour(curve.colour)), 1);
  }
  for (const ChartCurve& curve : curves) {
    const Colour colour = SeriesColour(curve.colour);
    draw(curve.x, smooth(curve) ? Smoothed(curve.y, chart.log_y) : curve.y, colour, 2);
    if (!curve.dotted && curve.x.size() > 1) continue;
    for (size_t i = 0; i < curve.x.size(); ++i) {
      canvas.Disc(frame.At(curve.x[i], curve.y[i]), 3.2, colour);
    }
  }
  canvas.Unclip();
  return frame;
}

// Words of a group's name in lines of at most `width` pixels.
std::vector<std::string> Wrapped(const std::string& text, double width) {
  std::vector<std::string> lines;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (!lines.empty() && Canvas::TextWidth(lines.back() + " " + word, kTextSize) <= width) {
      lines.back() += " " + word;
    } else {
      lines.push_back(word);
    }
    begin = end + 1;
  }
  return lines;
}

constexpr double kGroupFill = 0.8;  // of a group's width that its bars take

void CheckBars(const BarChart& chart) {
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument("chart \"" + chart.title + "\": " + what);
  };
  if (chart.groups.empty() || chart.series.empty()) fail("no bars to show");
  for (const BarSeries& series : chart.series) {
    const auto fits = [&](size_t size) { return size == chart.groups.size(); };
    if (!fits(series.values.size()) || series.low.size() != series.high.size() ||
        !(series.low.empty() || fits(series.low.size()))) {
      fail("series \"" + series.name + "\" has " + std::to_string(series.values.size()) +
           " values and " + std::to_string(series.low.size()) + " low and " +
           std::to_string(series.high.size()) + " high ends for " +
           std::to_string(chart.groups.size()) + " groups");
    }
  }
}

}  // namespace

Colour SeriesColour(size_t index) {
  // Told apart by people with any kind of sight (Okabe and Ito), the pale yellow left out.
  constexpr std::array<Colour, 8> kColours = {{{0, 114, 178},
                                               {213, 94, 0},
                                               {0, 158, 115},
                                               {204, 121, 167},
                                               {86, 180, 233},
                                               {230, 159, 0},
                                               {110, 80, 160},
                                               {90, 90, 90}}};
  return kColours[index % kColours.size()];
}

Colour Pale(Colour colour) {
  for (uint8_t& part : colour) part = static_cast<uint8_t>(255 - (255 - part) * 3 / 10);
  return colour;
}

CanvasPoint ChartFrame::At(double x_value, double y_value) const {
  return {top_left.x + x.Share(x_value) * (bottom_right.x - top_left.x),
          bottom_right.y + y.Share(y_value) * (top_left.y - bottom_right.y)};
}

std::vector<ChartFrame> DrawLineCharts(const std::vector<LineChart>& charts, int columns,
                                       const std::filesystem::path& png) {
  if (charts.empty()) throw std::invalid_argument("no charts to draw");
  columns = std::clamp(columns, 1, static_cast<int>(charts.size()));
  const int rows = (static_cast<int>(charts.size()) + columns - 1) / columns;
  Canvas canvas(columns * kPanelWidth, rows * kPanelHeight);
  std::vector<ChartFrame> frames;
  for (int i = 0; i < static_cast<int>(charts.size()); ++i) {
    const CanvasPoint corner = {static_cast<double>(i % columns * kPanelWidth),
                                static_cast<double>(i / columns * kPanelHeight)};
    frames.push_back(DrawLineChart(canvas, charts[i], corner));
  }
  canvas.SavePng(png);
  return frames;
}

double BarMiddle(const BarChart& chart, size_t group, size_t series) {
  const double bar = kGroupFill / static_cast<double>(chart.series.size());
  return static_cast<double>(group) + (1 - kGroupFill) / 2 +
         (static_cast<double>(series) + 0.5) * bar;
}

ChartFrame DrawBarChart(const BarChart& chart, const std::filesystem::path& png) {
  CheckBars(chart);
  Range y;
  y.Add(0);
  std::vector<LegendEntry> legend;
  for (size_t s = 0; s < chart.series.size(); ++s) {
    for (const auto* values :
         {&chart.series[s].values, &chart.series[s].low, &chart.series[s].high}) {
      for (const double value : *values) {
        if (std::isfinite(value)) y.Add(value);
      }
    }
    legend.push_back({chart.series[s].name, SeriesColour(s)});
  }
  const double bars = static_cast<double>(chart.groups.size() * chart.series.size());
  const double width = std::clamp(bars * 22 / kGroupFill, 560.0, 1500.0);
  const double group_width = width / static_cast<double>(chart.groups.size());
  size_t name_lines = 1;
  for (const std::string& group : chart.groups) {
    name_lines = std::max(name_lines, Wrapped(group, group_width - 8).size());
  }
  const int rows = DrawLegend(nullptr, legend, {}, width);
  ChartFrame frame;
  frame.top_left = {kLeft, kTop + rows * kLegendLine + 6};
  frame.bottom_right = {kLeft + width, frame.top_left.y + 340};
  frame.x = {0, static_cast<double>(chart.groups.size()), false, {}};
  frame.y = RoundAxis(y.low, y.high, kMostYTicks, /*grow=*/true);
  Canvas canvas(static_cast<int>(kLeft + width + kRight),
                static_cast<int>(frame.bottom_right.y + 16 + 15 * name_lines));
  DrawTitle(canvas, chart.title, {kLeft, 0});
  DrawLegend(&canvas, legend, {kLeft, kTop + 2}, width);
  DrawYAxis(canvas, frame);

  const double half = kGroupFill / static_cast<double>(chart.series.size()) / 2 * 0.92;
  for (size_t g = 0; g < chart.groups.size(); ++g) {
    for (size_t s = 0; s < chart.series.size(); ++s) {
      const BarSeries& series = chart.series[s];
      if (!std::isfinite(series.values[g])) continue;
      const double middle = BarMiddle(chart, g, s);
      canvas.Box(frame.At(middle - half, series.values[g]), frame.At(middle + half, 0),
                 SeriesColour(s));
      if (series.low.empty() || !std::isfinite(series.low[g]) || !std::isfinite(series.high[g])) {
        continue;
      }
      const CanvasPoint low = frame.At(middle, series.low[g]);
      const CanvasPoint high = frame.At(middle, series.high[g]);
      canvas.Line(low, high, kInk, 1.2);
      for (const CanvasPoint end : {low, high}) {
        canvas.Line({end.x - 3.5, end.y}, {end.x + 3.5, end.y}, kInk, 1.2);
      }
    }
    const std::vector<std::string> lines = Wrapped(chart.groups[g], group_width - 8);
    for (size_t line = 0; line < lines.size(); ++line) {
      canvas.Text(lines[line],
                  {frame.At(static_cast<double>(g) + 0.5, 0).x,
                   frame.bottom_right.y + 18 + 15 * static_cast<double>(line)},
                  0.5, kTextSize, kInk);
    }
  }
  const double zero = frame.At(0, 0).y;
  canvas.Line({frame.top_left.x, zero}, {frame.bottom_right.x, zero}, kFrame, 1);
  DrawFrame(canvas, frame);
  canvas.SavePng(png);
  return frame;
}

}  // namespace llava
