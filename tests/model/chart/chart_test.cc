#include "model/chart/chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/model/chart/chart_case.h"
#include "tests/support/error_of.h"

namespace llava {
namespace {

using testing::HasSubstr;
using ChartTest = ChartCase;

TEST_F(ChartTest, CurvesStandWhereTheirValuesAre) {
  LineChart chart{"loss", "step", {}, false};
  chart.curves.push_back({"a", 0, {0, 100}, {1, 5}, false, false});
  chart.curves.push_back({"b", 1, {0, 50, 100}, {4, 4, 4}, true, false});
  const ChartFrame frame = DrawLineCharts({chart}, 1, png()).at(0);
  const cv::Mat picture = Picture();
  ASSERT_FALSE(picture.empty());
  EXPECT_LE(frame.y.low, 1);
  EXPECT_GE(frame.y.high, 5);
  for (const double x : {10.0, 33.0, 60.0, 95.0}) {
    const double y = 1 + 4 * x / 100;
    EXPECT_TRUE(Shows(picture, frame.At(x, y), SeriesColour(0))) << x;
    EXPECT_FALSE(Shows(picture, frame.At(x, y + 0.3), SeriesColour(0))) << x;
    EXPECT_TRUE(Shows(picture, frame.At(x + 3, 4), SeriesColour(1))) << x;
  }
  // The disc of a dotted curve is wider than its line.
  CanvasPoint above = frame.At(50, 4);
  above.y -= 2.2;
  EXPECT_TRUE(Shows(picture, above, SeriesColour(1)));
  above = frame.At(40, 4);
  above.y -= 2.2;
  EXPECT_FALSE(Shows(picture, above, SeriesColour(1)));
}

TEST_F(ChartTest, LogarithmicAxesTurnPowersIntoLines) {
  LineChart chart{"loss", "step", {}, true};
  chart.curves.push_back({"a", 2, {0, 1, 2, 3, 4}, {100, 10, 1, 0.1, -3}, false, false});
  const ChartFrame frame = DrawLineCharts({chart}, 1, png()).at(0);
  const cv::Mat picture = Picture();
  EXPECT_TRUE(frame.y.logarithmic);
  EXPECT_GT(frame.y.low, 0.05) << "values that are not positive are left out";
  for (const double x : {0.5, 1.5, 2.5}) {
    EXPECT_TRUE(Shows(picture, frame.At(x, 100 * std::pow(10, -x)), SeriesColour(2)));
  }
}

TEST_F(ChartTest, NoisyCurvesArePaleUnderASmoothOne) {
  ChartCurve curve{"noise", 0, {}, {}, false, true};
  for (int i = 0; i < 400; ++i) {
    curve.x.push_back(i);
    curve.y.push_back(0.01 * i + (i % 2 == 0 ? 1 : -1));
  }
  const ChartFrame frame = DrawLineCharts({{"loss", "step", {curve}, false}}, 1, png()).at(0);
  const cv::Mat picture = Picture();
  for (const double x : {20.0, 150.0, 380.0}) {
    EXPECT_TRUE(Shows(picture, frame.At(x + 1, 0.01 * x), SeriesColour(0))) << x;
    EXPECT_LE(Difference(picture, frame.At(x + 4, 0.01 * x + 0.5), Pale(SeriesColour(0))), 60);
  }
}

TEST_F(ChartTest, SmoothCurvesDoNotLagAtTheEnds) {
  ChartCurve curve{"slope", 3, {}, {}, false, true};
  for (int i = 0; i <= 4000; ++i) {
    curve.x.push_back(i);
    curve.y.push_back(i);
  }
  const ChartFrame frame = DrawLineCharts({{"loss", "step", {curve}, false}}, 1, png()).at(0);
  const cv::Mat picture = Picture();
  for (const double x : {8.0, 2000.0, 3992.0}) {  // a running mean would be 2 pixels off
    EXPECT_TRUE(Shows(picture, frame.At(x, x), SeriesColour(3))) << x;
  }
}

TEST_F(ChartTest, TellsWhatCannotBeDrawn) {
  EXPECT_THAT(ErrorOf([&] {
                DrawLineCharts({{"void", "step", {}, false}}, 1, png());
              }),
              HasSubstr("void"));
  EXPECT_THAT(
      ErrorOf([&] {
        DrawLineCharts({{"odd", "x", {{"c", 0, {1, 2}, {1}, false, false}}, false}}, 1, png());
      }),
      HasSubstr("2 positions for 1 values"));
}

TEST_F(ChartTest, BarsReachTheirValues) {
  const double gap = std::nan("");
  const BarChart chart{
      "Ablation",
      {"naming", "counting"},
      {{"stages 1+2", {0.9, 0.8}, {0.85, 0.7}, {0.95, 0.9}}, {"stage 2 only", {0.5, gap}, {}, {}}}};
  const ChartFrame frame = DrawBarChart(chart, png());
  const cv::Mat picture = Picture();
  EXPECT_EQ(frame.y.low, 0);
  const auto at = [&](size_t group, size_t series, double value) {
    CanvasPoint point = frame.At(BarMiddle(chart, group, series), value);
    point.x -= 6;  // beside the whisker
    return point;
  };
  EXPECT_TRUE(Shows(picture, at(0, 0, 0.05), SeriesColour(0)));
  EXPECT_TRUE(Shows(picture, at(0, 0, 0.88), SeriesColour(0)));
  EXPECT_FALSE(Shows(picture, at(0, 0, 0.92), SeriesColour(0)));
  EXPECT_TRUE(Shows(picture, at(0, 1, 0.45), SeriesColour(1)));
  EXPECT_TRUE(Shows(picture, at(1, 0, 0.75), SeriesColour(0)));
  EXPECT_TRUE(Shows(picture, at(1, 1, 0.3), {255, 255, 255})) << "a gap";
  CanvasPoint whisker = at(0, 0, 0.94);
  whisker.x += 6;
  EXPECT_LT(picture.at<cv::Vec3b>(static_cast<int>(whisker.y), static_cast<int>(whisker.x))[1],
            120);
  EXPECT_THAT(ErrorOf([&] {
                DrawBarChart({"x", {"a"}, {{"s", {1, 2}, {}, {}}}}, png());
              }),
              HasSubstr("2 values"));
}

std::vector<std::string> Labels(const ChartAxis& axis) {
  std::vector<std::string> labels;
  for (const Tick& tick : axis.ticks) labels.push_back(tick.label);
  return labels;
}

TEST(ChartAxisTest, TicksAreRound) {
  EXPECT_EQ(Labels(RoundAxis(0, 1, 6, true)),
            (std::vector<std::string>{"0", "0.2", "0.4", "0.6", "0.8", "1"}));
  EXPECT_EQ(Labels(RoundAxis(0.3, 6.7, 8, true)),
            (std::vector<std::string>{"0", "1", "2", "3", "4", "5", "6", "7"}));
  EXPECT_EQ(Labels(RoundAxis(-37, 210, 7, false)),
            (std::vector<std::string>{"0", "50", "100", "150", "200"}));
  EXPECT_EQ(Labels(LogAxis(0.02, 300, 8)), (std::vector<std::string>{"0.1", "1", "10", "100"}));
  EXPECT_EQ(Labels(LogAxis(0.4, 3, 8)), (std::vector<std::string>{"0.5", "1", "2"}));
}

TEST(ChartAxisTest, SharesGoFromEndToEnd) {
  const ChartAxis round = RoundAxis(0, 10, 6, true);
  EXPECT_DOUBLE_EQ(round.Share(2.5), 0.25);
  const ChartAxis log = LogAxis(1, 100, 8);
  EXPECT_DOUBLE_EQ(log.Share(10), 0.5);
  EXPECT_THROW(LogAxis(0, 1, 8), std::invalid_argument);
}

TEST(ChartAxisTest, EqualEndsAreMovedApart) {
  for (const double value : {0.0, 3.0, -2.0}) {
    const ChartAxis axis = RoundAxis(value, value, 6, true);
    EXPECT_LT(axis.low, value);
    EXPECT_GT(axis.high, value);
  }
  EXPECT_LT(LogAxis(5, 5, 6).low, 5);
}

TEST(ChartAxisTest, NumbersAreShort) {
  EXPECT_EQ(ShortNumber(0), "0");
  EXPECT_EQ(ShortNumber(0.05), "0.05");
  EXPECT_EQ(ShortNumber(1200), "1200");
  EXPECT_EQ(ShortNumber(250000), "250k");
  EXPECT_EQ(ShortNumber(3e6), "3M");
  EXPECT_EQ(ShortNumber(0.00003), "3e-05");
  EXPECT_EQ(ShortNumber(-0.5), "-0.5");
}

}  // namespace
}  // namespace llava
