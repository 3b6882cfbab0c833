#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "model/eval/report/report.h"

namespace llava {
namespace {

constexpr std::array<const char*, 8> kColours = {"#4477aa", "#ee6677", "#228833", "#ccbb44",
                                                 "#66ccee", "#aa3377", "#bb7733", "#888888"};
constexpr double kWidth = 900, kHeight = 320, kLeft = 44, kRight = 8, kTop = 12, kBottom = 30;
constexpr double kLegendLine = 20;
constexpr int kTicks = 5;

std::string Element(const char* format, std::initializer_list<double> values) {
  std::string text;
  auto value = values.begin();
  for (const char* c = format; *c; ++c) {
    if (*c != '@') {
      text += *c;
      continue;
    }
    char number[32];
    std::snprintf(number, sizeof(number), "%.1f", *value++);
    text += number;
  }
  return text;
}

// A round number at or above the highest value.
double Top(double highest) {
  if (highest <= 0) return 1;
  const double power = std::pow(10, std::floor(std::log10(highest)));
  for (const double step : {1.0, 1.5, 2.0, 2.5, 5.0, 10.0}) {
    if (step * power >= highest) return step * power;
  }
  return 10 * power;
}

std::string Tick(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

// Published series are paler.
std::string Fill(size_t series, bool published) {
  return std::string(" fill=\"") + kColours[series % kColours.size()] +
         (published ? "\" fill-opacity=\".6\"/>" : "\"/>");
}

}  // namespace

std::string BarsSvg(const ReportTable& table) {
  std::vector<const ReportRow*> rows;
  double highest = 0;
  for (const ReportRow& row : table.rows) {
    if (!row.drawn) continue;
    rows.push_back(&row);
    for (const ReportCell& cell : row.cells) {
      highest = std::max(highest, cell.value.value_or(0));  // a whisker may end at the top
    }
  }
  const double top = Top(highest), height = kHeight - kTop - kBottom;
  const double full_height = kHeight + kLegendLine * static_cast<double>(rows.size());
  const auto y_of = [&](double value) {
    return kTop + height * (1 - std::clamp(value, 0.0, top) / top);
  };
  std::string svg = Element(
      "<svg viewBox=\"0 0 @ @\" role=\"img\" xmlns=\"http://www.w3.org/2000/"
      "svg\" font-family=\"system-ui,sans-serif\" font-size=\"12\">",
      {kWidth, full_height});
  svg += "<title>" + EscapedHtml(table.title) + "</title>\n";
  for (int tick = 0; tick <= kTicks; ++tick) {
    const double value = top * tick / kTicks, y = y_of(value);
    svg += Element("<line x1=\"@\" y1=\"@\" x2=\"@\" y2=\"@\" stroke=\"#8884\"/>",
                   {kLeft, y, kWidth - kRight, y});
    svg += Element("<text x=\"@\" y=\"@\" text-anchor=\"end\">", {kLeft - 6, y + 4});
    svg += Tick(value) + " %</text>\n";
  }
  const auto groups = static_cast<double>(table.columns.size());
  const double group = (kWidth - kLeft - kRight) / std::max(1.0, groups);
  const double bar = 0.8 * group / static_cast<double>(std::max<size_t>(1, rows.size()));
  for (size_t g = 0; g < table.columns.size(); ++g) {
    const double begin = kLeft + group * (static_cast<double>(g) + 0.1);
    for (size_t r = 0; r < rows.size(); ++r) {
      const ReportCell& cell = rows[r]->cells[g];
      if (!cell.value) continue;
      const double x = begin + bar * static_cast<double>(r), y = y_of(*cell.value);
      svg += Element("<rect x=\"@\" y=\"@\" width=\"@\" height=\"@\"",
                     {x, y, 0.9 * bar, kTop + height - y});
      svg += Fill(r, rows[r]->published);
      if (cell.low && cell.high) {
        const double middle = x + 0.45 * bar;
        svg += Element("<line x1=\"@\" y1=\"@\" x2=\"@\" y2=\"@\" stroke=\"currentColor\"/>",
                       {middle, y_of(*cell.low), middle, y_of(*cell.high)});
      }
    }
    svg += Element("<text x=\"@\" y=\"@\" text-anchor=\"middle\">",
                   {begin + 0.4 * group, kHeight - kBottom + 18});
    svg += EscapedHtml(table.columns[g]) + "</text>\n";
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    const double y = kHeight + kLegendLine * static_cast<double>(r);
    svg += Element("<rect x=\"@\" y=\"@\" width=\"12\" height=\"12\"", {kLeft, y});
    svg += Fill(r, rows[r]->published);
    svg += Element("<text x=\"@\" y=\"@\">", {kLeft + 18, y + 11});
    svg += EscapedHtml(rows[r]->name) + (rows[r]->published ? " (published)" : "") + "</text>\n";
  }
  return svg + "</svg>";
}

}  // namespace llava
