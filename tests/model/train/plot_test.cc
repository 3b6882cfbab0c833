#include "model/train/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/model/chart/chart_case.h"
#include "tests/support/error_of.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class PlotTest : public ChartCase {
 protected:
  // A run folder with these lines.
  fs::path Run(const std::string& name, const std::string& lines) const {
    folder_.Write(name + "/metrics.jsonl", lines);
    return folder_.path() / name;
  }
};

TEST_F(PlotTest, RunsAreLaidOverEachOtherAndResumedStepsCountOnce) {
  const fs::path first = Run("first", R"({"step":1,"loss":4}
{"step":2,"loss":9}
{"step":2,"loss":3}
{"step":3,"loss":null}
{"step":4,"loss":1}
)");
  const fs::path second = Run("second", R"({"step":1,"loss":2.5}
{"step":4,"loss":2.5}
{"step":5,"lo)");  // broken off in the middle of a line
  const std::vector<ChartFrame> frames = PlotMetrics({first, second}, png(), {{"loss"}, false, 2});
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_LT(frames[0].y.high, 9) << "the line of step 2 that was replaced";
  const cv::Mat picture = Picture();
  EXPECT_TRUE(Shows(picture, frames[0].At(1.5, 3.5), SeriesColour(0)));
  EXPECT_TRUE(Shows(picture, frames[0].At(3, 2), SeriesColour(0))) << "past the value left out";
  EXPECT_TRUE(Shows(picture, frames[0].At(3.5, 2.5), SeriesColour(1)));
}

TEST_F(PlotTest, ChoosesFiguresByItself) {
  const fs::path run =
      Run("run", R"({"step":1,"loss":4,"learning_rate":0.1,"tokens":100,"seconds":2}
{"step":2,"loss":3,"learning_rate":0.2,"figures":{"key_words":0.5},"evaluation":{"held_out_loss":3.5,"naming":0.25}}
)");
  // loss with held_out_loss, learning rate, naming
  EXPECT_EQ(PlotMetrics({run}, png()).size(), 3u);
  const auto chosen =
      PlotMetrics({run / "metrics.jsonl"}, png(), {{"key_words", "tokens_per_second"}, false, 1});
  ASSERT_EQ(chosen.size(), 2u);
  EXPECT_TRUE(Shows(Picture(), chosen[1].At(1, 50), SeriesColour(0)));
}

TEST_F(PlotTest, TellsWhatCannotBeDrawn) {
  const fs::path run = Run("run", "{\"step\":1,\"loss\":4}\n");
  EXPECT_THAT(ErrorOf([&] {
                PlotMetrics({run}, png(), {{"los"}, false, 1});
              }),
              testing::AllOf(HasSubstr("\"los\""), HasSubstr("there are loss")));
  EXPECT_THAT(ErrorOf([&] { PlotMetrics({folder_.path() / "none"}, png()); }), HasSubstr("none"));
  EXPECT_THAT(ErrorOf([&] { PlotMetrics({Run("empty", "")}, png()); }), HasSubstr("no metrics"));
  const fs::path broken = Run("broken", "{\"step\":1,\"loss\":4}\n{\"step\":\n{\"step\":3}\n");
  EXPECT_THAT(ErrorOf([&] { PlotMetrics({broken}, png()); }), HasSubstr("metrics.jsonl:2"));
  EXPECT_THAT(ErrorOf([&] { PlotMetrics({run}, folder_.path() / "no" / "x.png"); }),
              HasSubstr("x.png"));
}

}  // namespace
}  // namespace llava
