#include "model/eval/report/report.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kScience = R"({"kind": "scienceqa",
  "classes": {"NAT": {"acc": 50.0, "low": 40.0, "high": 60.0},
              "AVG": {"acc": 75.125, "low": 70.0, "high": 80.0}},
  "complement": {"classes": {"AVG": {"acc": 80.0}}}})";
constexpr const char* kWild = R"({"kind": "judge", "files": [{"file": "a", "categories":
  {"all": {"relative": 60.04, "low": 55.0, "high": 65.0},
   "llava_bench_conv": {"relative": 61.0, "low": null, "high": null}}}]})";
constexpr const char* kRuns = R"({"kind": "judge", "files": [{"file": "a", "categories":
  {"all": {"relative": 1.0}, "conv": {"relative": 2.0}}}],
  "average": {"all": {"relative": {"mean": 81.26, "deviation": 0.5}}}})";

const ReportRow* Find(const ReportTable& table, const std::string& name) {
  for (const ReportRow& row : table.rows) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

TEST(ReportTest, PutsResultsBesideThePaper) {
  const TempFolder folder;
  const auto tables = MakeReport({{"mine", folder.Write("a.json", kScience)},
                                  {"wild", folder.Write("b.json", kWild)},
                                  {"runs", folder.Write("c.json", kRuns)}});
  ASSERT_EQ(tables.size(), 3);
  EXPECT_EQ(tables[0].title, "ScienceQA");
  ASSERT_NE(Find(tables[0], "mine"), nullptr);
  EXPECT_EQ(Find(tables[0], "mine")->cells.back().value, 75.125);
  EXPECT_EQ(Find(tables[0], "mine")->cells[1].value, std::nullopt);
  EXPECT_EQ(Find(tables[0], "mine, complement")->cells.back().value, 80.0);
  EXPECT_EQ(Find(tables[0], "LLaVA 13B")->cells.back().value, 90.92);
  EXPECT_TRUE(Find(tables[0], "LLaVA 13B")->published);
  EXPECT_EQ(tables[1].title, "Judge, COCO and own questions");
  EXPECT_EQ(Find(tables[1], "runs")->cells.back().value, 81.26);
  EXPECT_EQ(Find(tables[1], "runs")->cells.back().low, 80.76);
  EXPECT_EQ(Find(tables[1], "LLaVA 13B, full data")->cells.back().value, 85.1);
  EXPECT_EQ(tables[2].title, "Judge, in the wild");
  EXPECT_EQ(Find(tables[2], "wild")->cells.front().value, 61.0);
  EXPECT_EQ(Find(tables[2], "wild")->cells.front().low, std::nullopt);
}

TEST(ReportTest, TellsOfQuestionsWithoutAnswers) {
  const TempFolder folder;
  const auto failures = [](int missing, int unread, int out_of_range) {
    return R"("failures": {"missing": )" + std::to_string(missing) + R"(, "unread": )" +
           std::to_string(unread) + R"(, "out_of_range": )" + std::to_string(out_of_range) +
           R"(, "ids": []}, "classes": {"AVG": {"acc": 21.0}})";
  };
  const auto vqa = [](const char* metric, int missing) {
    return R"({"kind": "vqa", "acc": 12.5, "count": 80, "metric": ")" + std::string(metric) +
           R"(", "missing": )" + std::to_string(missing) + "}";
  };
  const auto tables = MakeReport(
      {{"part", folder.Write("a.json", R"({"kind": "scienceqa", "complement": {)" +
                                           failures(7, 0, 0) + R"(}, "judge": {)" +
                                           failures(0, 0, 2) + "}, " + failures(3241, 1, 0) + "}")},
       {"whole", folder.Write("b.json", R"({"kind": "scienceqa", )" + failures(0, 0, 0) + "}")},
       {"soft", folder.Write("c.json", vqa("soft", 12))},
       {"exact", folder.Write("d.json", vqa("exact", 5))},
       {"full", folder.Write("e.json", vqa("exact", 0))}});
  ASSERT_EQ(tables.size(), 2);
  EXPECT_THAT(tables[0].note,
              AllOf(HasSubstr(" part: counted as wrong: 3241 without an answer, 1 not readable."),
                    HasSubstr(" part, complement: counted as wrong: 7 without an answer."),
                    HasSubstr(" part, judge: counted as wrong: 2 no such choice."),
                    Not(HasSubstr("whole"))));
  EXPECT_THAT(tables[1].note, AllOf(HasSubstr(" soft: counted as wrong: 12 without an answer."),
                                    HasSubstr(" exact: counted as wrong: 5 without an answer."),
                                    Not(HasSubstr("full"))));
}

TEST(ReportTest, TellsOfJudgementsThatAreNotWhole) {
  const TempFolder folder;
  const std::string file = R"({"file": "a", "missing": 4, "categories": {
      "all": {"relative": 60.0}, "conv": {"relative": 61.0}}})";
  const auto judged = [&](const std::string& files, const std::string& average) {
    return R"({"kind": "judge", "files": [)" + files + "]" + average + "}";
  };
  const auto tables = MakeReport(
      {{"apart", folder.Write("a.json", judged(file + ", " + file, R"(, "average": null)"))},
       {"part", folder.Write("b.json", judged(file, ""))}});
  ASSERT_EQ(tables.size(), 1);
  for (const ReportCell& cell : Find(tables[0], "apart")->cells) {
    EXPECT_EQ(cell.value, std::nullopt);
  }
  EXPECT_EQ(Find(tables[0], "part")->cells.back().value, 60.0);
  EXPECT_THAT(tables[0].note,
              AllOf(HasSubstr(" apart: no mean, the files review different questions."),
                    HasSubstr(" apart: not all was judged, 8 reviews are missing."),
                    HasSubstr(" part: not all was judged, 4 reviews are missing.")));
  const auto whole = MakeReport({{"whole", folder.Write("c.json", kRuns)}});
  EXPECT_THAT(whole[0].note, Not(HasSubstr("whole")));
}

TEST(ReportTest, TellsOfReviewsWithoutScores) {
  const TempFolder folder;
  const auto file = [](const std::string& name, const std::string& all) {
    return R"({"file": ")" + name + R"(", "categories": {"all": )" + all + "}}";
  };
  const auto judged = [](const std::string& files, const std::string& more = "") {
    return R"({"kind": "judge", "files": [)" + files + "]" + more + "}";
  };
  const std::string part = R"({"relative": 37.5, "count": 90, "unread": 20, "mended": 10,
                               "outside": 2, "relative_of_read": 70.56})";
  const std::string outside = R"({"relative": 99.0, "count": 90, "unread": 0, "mended": 0,
                                  "outside": 1, "relative_of_read": 80.0})";
  const std::string none = R"({"relative": 100.0, "count": 90, "unread": 90, "mended": 0,
                               "outside": 0, "relative_of_read": null})";
  const auto tables = MakeReport(
      {{"part", folder.Write("a.json", judged(file("x", part)))},
       {"wide", folder.Write("b.json", judged(file("x", outside)))},
       {"mute", folder.Write("c.json", judged(file("x", none)))},
       {"runs",
        folder.Write("d.json", judged(file("/r/1", outside) + ", " + file("2", none),
                                      R"(, "average": {"all": {"relative": {"mean": 99.5}}})"))}});
  ASSERT_EQ(tables.size(), 1);
  EXPECT_EQ(Find(tables[0], "part")->cells.back().value, 37.5);
  EXPECT_EQ(Find(tables[0], "runs")->cells.back().value, std::nullopt);
  EXPECT_EQ(Find(tables[0], "mute")->cells.back().value, std::nullopt);
  EXPECT_THAT(
      tables[0].note,
      AllOf(HasSubstr(" part: 30 reviews without scores by the published rule count as -1, 2 "
                      "reviews with scores that are not from 0 to 10 count as they are; relative "
                      "of those read kindly: 70.6."),
            HasSubstr(" wide: 1 reviews with scores that are not from 0 to 10 count as they are; "
                      "relative of those read kindly: 80.0."),
            HasSubstr(" mute: no figure, none of 90 reviews has scores by the published rule."),
            HasSubstr(" runs (1): 1 reviews with"), HasSubstr(" runs (2): no figure")));
}

TEST(ReportTest, KnowsShortAnswersAndScenes) {
  const TempFolder folder;
  const auto tables = MakeReport(
      {{"a", folder.Write("a.json", R"({"kind": "vqa", "metric": "soft", "acc": 66.6})")},
       {"b", folder.Write("b.json", R"({"kind": "vqa", "metric": "pope", "mean_f1": 0.85,
                                        "all": {"accuracy": 0.9, "precision": null}})")},
       {"c", folder.Write("c.json", R"({"naming": {"accuracy": 0.5, "low": 0.4, "high": 0.6},
                                        "types": {}, "settings": {}})")}});
  ASSERT_EQ(tables.size(), 3);
  EXPECT_EQ(tables[0].rows[0].cells[0].value, 66.6);
  EXPECT_EQ(tables[1].rows[0].cells[0].value, 85.0);
  EXPECT_EQ(tables[1].rows[0].cells[2].value, std::nullopt);
  EXPECT_EQ(tables[2].columns, std::vector<std::string>{"naming"});
  EXPECT_EQ(tables[2].rows[0].cells[0].high, 60.0);
}

TEST(ReportTest, AveragesSeedsOfScenes) {
  const TempFolder folder;
  const auto quality = [&](const char* name, const std::string& accuracy) {
    return folder.Write(name, R"({"bigger": {"accuracy": 0.9}, "naming": {"accuracy": )" +
                                  accuracy + R"(, "low": 0.1, "high": 0.9},
                                  "types": {"what": {"accuracy": 0.1}}, "settings": {}})");
  };
  const auto tables = MakeReport({{"full", quality("1.json", "0.5")},
                                  {"less", quality("2.json", "0.25")},
                                  {"full", quality("3.json", "0.6")}});
  ASSERT_EQ(tables.size(), 1);
  ASSERT_EQ(tables[0].rows.size(), 2);
  EXPECT_EQ(tables[0].columns, (std::vector<std::string>{"naming", "bigger", "average"}));
  EXPECT_EQ(tables[0].rows[0].name, "full");
  EXPECT_DOUBLE_EQ(*tables[0].rows[0].cells[0].value, 55);
  EXPECT_NEAR(*tables[0].rows[0].cells[0].low, 55 - 7.0711, 1e-3);
  EXPECT_DOUBLE_EQ(*tables[0].rows[0].cells[2].value, (55.0 + 90.0) / 2);
  EXPECT_NEAR(*tables[0].rows[0].cells[2].high, 72.5 + 3.5355, 1e-3);
  EXPECT_EQ(tables[0].rows[1].cells[0].high, 90.0);
  EXPECT_EQ(tables[0].rows[1].cells[2].high, std::nullopt);
}

TEST(ReportTest, NamesFilesThatAreNoResults) {
  const TempFolder folder;
  for (const char* content : {"{}", R"({"kind": "judge", "files": []})", R"({"kind": "other"})"}) {
    EXPECT_THAT(ErrorOf([&] {
                  MakeReport({{"x", folder.Write("x.json", content)}});
                }),
                HasSubstr("x.json: not what a command"));
  }
  EXPECT_THAT(ErrorOf([] { MakeReport({{"x", "/nowhere/x"}}); }), HasSubstr("/nowhere/x"));
}

ReportTable Small() {
  return {"A & B",
          "note",
          {"c|1", "c2"},
          {{"<mine>", {{50.0, {}, {}}, {75.25, 70.0, 80.0}}},
           {"theirs", {{{}, {}, {}}, {90.0, {}, {}}}, true, false}},
          1};
}

TEST(ReportTest, IsMarkdown) {
  EXPECT_EQ(ReportMarkdown("T", {Small()}),
            "# T\n\n## A & B\n\nnote\n\n| model | c\\|1 | c2 |\n| --- | ---: | ---: |\n"
            "| **\\<mine>** | 50.0 | 75.2 (70.0 - 80.0) |\n| theirs (published) |  | 90.0 |\n");
}

TEST(ReportTest, IsHtmlThatNeedsNothingElse) {
  const std::string html = ReportHtml("<T>", {Small()});
  EXPECT_THAT(html,
              AllOf(HasSubstr("<title>&lt;T&gt;</title>"), HasSubstr("<h2>A &amp; B</h2>"),
                    HasSubstr("<td>&lt;mine&gt;</td><td>50.0</td>"),
                    HasSubstr("<td title=\"70.0 - 80.0\">75.2<small>70.0 - 80.0</small></td>"),
                    HasSubstr("<svg ")));
  EXPECT_THAT(html, AllOf(Not(HasSubstr("src=")), Not(HasSubstr("href=")),
                          Not(HasSubstr("<script")), Not(HasSubstr("@import"))));
}

TEST(BarsSvgTest, DrawsBarsToScale) {
  const std::string svg = BarsSvg(Small());
  // From 0 at y = 290 to 100 at y = 12: 50 is 139 high.
  EXPECT_THAT(svg, HasSubstr("height=\"139.0\" fill=\"#4477aa\""));
  EXPECT_THAT(svg, HasSubstr("&lt;mine&gt;"));
  EXPECT_THAT(svg, HasSubstr(">80 %</text>"));
  EXPECT_THAT(svg, Not(HasSubstr("theirs")));
  size_t bars = 0;
  for (size_t at = 0; (at = svg.find("<rect", at)) != svg.npos; ++at) ++bars;
  EXPECT_EQ(bars, 3);  // two values and the legend
  EXPECT_THAT(BarsSvg({"none", "", {}, {}}), HasSubstr("</svg>"));
}

}  // namespace
}  // namespace llava
