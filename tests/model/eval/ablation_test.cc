#include "model/eval/ablation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "tests/model/chart/chart_case.h"
#include "tests/support/error_of.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

TEST(SpreadTest, IsMeanAndDeviationOfTheSample) {
  const Spread spread = SpreadOf(std::vector{0.9, 0.8, 0.7, 0.8});
  EXPECT_DOUBLE_EQ(spread.mean, 0.8);
  EXPECT_NEAR(*spread.deviation, 0.0816496580927726, 1e-15);  // sqrt(0.02 / 3)
  const Spread pair = SpreadOf(std::vector{0.5, 0.7});
  EXPECT_DOUBLE_EQ(pair.mean, 0.6);
  EXPECT_NEAR(*pair.deviation, 0.1414213562373095, 1e-15);
  const Spread equal = SpreadOf(std::vector{1.0, 1.0, 1.0});
  EXPECT_EQ(equal.mean, 1);
  EXPECT_EQ(equal.deviation, 0);
  const Spread one = SpreadOf(std::vector{0.25});
  EXPECT_EQ(one.mean, 0.25);
  EXPECT_FALSE(one.deviation.has_value());
  EXPECT_THROW(SpreadOf({}), std::invalid_argument);
}

class AblationTest : public ChartCase {
 protected:
  // A result as chat-quality writes it, with these groups.
  fs::path Result(const std::string& name, const std::string& groups, int seed = 1) const {
    return Write(name,
                 "{" + groups + R"(, "types": {"what": {"accuracy": 0.1}}, "settings": )" +
                     R"({"model": ")" + name + R"(", "seed": )" + std::to_string(seed) +
                     R"(, "per_type": 200, "categories": 48, "objects": [1, 3], "repeats": 0.5,
                               "positions": "snapped", "held_out": "train"}})");
  }
  static std::string Groups(double naming, double left_right) {
    return R"("naming": {"accuracy": )" + std::to_string(naming) +
           R"(, "n": 400}, "left_right": {"accuracy": )" + std::to_string(left_right) +
           R"(, "n": 400})";
  }
  fs::path Write(const std::string& name, const std::string& text) const {
    return folder_.Write(name, text);
  }
  std::string ReadingFails(const std::vector<AblationVariant>& variants) const {
    return ErrorOf([&] { ReadAblation(variants); });
  }

  std::vector<AblationVariant> Two() const {
    return {{"full", {Result("a", Groups(0.9, 1.0)), Result("b", Groups(0.8, 0.96))}},
            {"no stage 1", {Result("c", Groups(0.5, 0.99)), Result("d", Groups(0.4, 0.97))}}};
  }
};

TEST_F(AblationTest, AveragesSeedsThenGroups) {
  const Ablation ablation = ReadAblation(Two());
  EXPECT_THAT(ablation.groups, ElementsAre("naming", "left_right", "average"));
  ASSERT_EQ(ablation.columns.size(), 2u);
  const Ablation::Column& full = ablation.columns[0];
  EXPECT_EQ(full.variant, "full");
  EXPECT_EQ(full.seeds, 2u);
  ASSERT_EQ(full.shares.size(), 3u);
  EXPECT_NEAR(full.shares[0].mean, 0.85, 1e-12);
  EXPECT_NEAR(*full.shares[0].deviation, 0.0707106781186548, 1e-12);
  EXPECT_NEAR(full.shares[1].mean, 0.98, 1e-12);
  // Of 0.95 and 0.88, the averages of each seed: not of the deviations above.
  EXPECT_NEAR(full.shares[2].mean, 0.915, 1e-12);
  EXPECT_NEAR(*full.shares[2].deviation, 0.0494974746830583, 1e-12);
}

TEST_F(AblationTest, TableTellsDifferences) {
  const Ablation ablation = ReadAblation(Two());
  EXPECT_EQ(AblationMarkdown(ablation, "full"),
            "| group | full | no stage 1 |\n"
            "| --- | --- | --- |\n"
            "| naming | 85.0 ± 7.1 | 45.0 ± 7.1 (-40.0) |\n"
            "| left_right | 98.0 ± 2.8 | 98.0 ± 1.4 (0.0) |\n"
            "| **average** | 91.5 ± 4.9 | 71.5 ± 4.2 (-20.0) |\n"
            "| seeds | 2 | 2 |\n");
  EXPECT_THAT(AblationMarkdown(ablation, "no stage 1"), HasSubstr("| 85.0 ± 7.1 (+40.0) |"));
  EXPECT_THAT(AblationMarkdown(ablation, ""), HasSubstr("| naming | 85.0 ± 7.1 | 45.0 ± 7.1 |"));
  EXPECT_EQ(ErrorOf([&] { AblationMarkdown(ablation, "whole"); }),
            "no variant is called \"whole\"; there are \"full\" \"no stage 1\"");
}

TEST_F(AblationTest, OneSeedHasNoDeviation) {
  const Ablation ablation = ReadAblation({{"full", {Result("a", Groups(0.9, 1.0))}}});
  EXPECT_THAT(AblationMarkdown(ablation, "full"),
              AllOf(HasSubstr("| naming | 90.0 |\n"), HasSubstr("| seeds | 1 |\n")));
  const BarChart chart = AblationChart(ablation);
  EXPECT_TRUE(chart.series.at(0).low.empty());
  EXPECT_TRUE(chart.series.at(0).high.empty());
}

TEST_F(AblationTest, ChartShowsMeansWithWhiskers) {
  const BarChart chart = AblationChart(ReadAblation(Two()));
  EXPECT_THAT(chart.groups, ElementsAre("naming", "left right", "average"));
  ASSERT_EQ(chart.series.size(), 2u);
  EXPECT_EQ(chart.series[1].name, "no stage 1");
  EXPECT_NEAR(chart.series[0].values.at(0), 85, 1e-9);
  EXPECT_NEAR(chart.series[0].low.at(0), 77.928932188134524, 1e-9);
  EXPECT_NEAR(chart.series[0].high.at(0), 92.071067811865476, 1e-9);
  EXPECT_EQ(chart.series[0].high.at(1), 100) << "98 + 2.8 is no share";
  const ChartFrame frame = DrawBarChart(chart, png());
  EXPECT_EQ(frame.y.high, 100);
  EXPECT_TRUE(Shows(Picture(), frame.At(BarMiddle(chart, 1, 1) - 0.05, 50), SeriesColour(1)));
}

TEST_F(AblationTest, NamesTheFileThatIsNoResult) {
  const auto fails = [this](const fs::path& file) {
    return ReadingFails({{"full", {Result("good", Groups(0.9, 1.0)), file}}});
  };
  EXPECT_EQ(fails(folder_.At("none.json")),
            folder_.At("none.json") + ": cannot read: No such file or directory");
  const std::string no_result = ": not what `llava-eval chat-quality --json` prints";
  const fs::path broken = Write("broken.json", R"({"naming": {"accuracy": 0.)");
  EXPECT_THAT(fails(broken), AllOf(StartsWith(broken.string() + ": no JSON: parse error at line 1"),
                                   EndsWith(no_result)));
  const fs::path empty = Write("empty.json", "");
  EXPECT_THAT(fails(empty), StartsWith(empty.string() + ": no JSON: "));
  const fs::path large = Write("large.json", R"({"naming": 1e999})");
  EXPECT_THAT(fails(large), StartsWith(large.string() + ": no JSON: number overflow"));
  const fs::path deep = Write("deep.json", std::string(100'000, '['));
  EXPECT_THAT(fails(deep), StartsWith(deep.string() + ": no JSON: has more than 200 levels"));
  const fs::path list = Write("list.json", "[1, 2]");
  EXPECT_EQ(fails(list), list.string() + ": has no \"settings\"" + no_result);
  const fs::path other = Write("other.json", R"({"settings": {"seed": 1}})");
  EXPECT_EQ(fails(other), other.string() + ": has no \"settings/per_type\"" + no_result);
  for (const char* row : {"3", "{}", R"({"accuracy": null})", R"({"accuracy": 1.5})"}) {
    const fs::path file = Result("row.json", std::string("\"naming\": ") + row);
    EXPECT_EQ(fails(file), file.string() + ": \"naming\" has no accuracy from 0 to 1" + no_result);
  }
  const fs::path bare = Write("bare.json", R"({"settings": {"seed": 1, "per_type": 200,
      "categories": 48, "objects": [1, 3], "repeats": 0.5, "positions": "snapped",
      "held_out": "train"}})");
  EXPECT_EQ(fails(bare), bare.string() + ": has no groups of questions" + no_result);
}

TEST_F(AblationTest, ComparesOnlyWhatCanBeCompared) {
  const fs::path a = Result("a", Groups(0.9, 1.0));
  const fs::path fewer = Result("fewer", R"("naming": {"accuracy": 0.5})");
  EXPECT_EQ(ReadingFails({{"full", {a}}, {"other", {fewer}}}),
            fewer.string() + " has the groups naming; " + a.string() + " has naming left_right");
  const fs::path later = Result("later", Groups(0.9, 1.0), 2);
  EXPECT_EQ(ReadingFails({{"full", {a, later}}}),
            later.string() + ": \"seed\" of its exam is 2, of " + a.string() +
                " 1: only answers to the same questions can be compared");
  EXPECT_EQ(ReadingFails({{"full", {a}}, {"other", {folder_.At("./a")}}}),
            folder_.At("./a") + " is given twice");
  EXPECT_EQ(ReadingFails({{"full", {}}}), "variant \"full\" has no results");
  EXPECT_EQ(ReadingFails({}), "no variants to compare");
}

}  // namespace
}  // namespace llava
