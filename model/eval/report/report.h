#pragma once

// What llava-eval measured, in one document, beside the values of the paper.

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

struct ReportCell {
  std::optional<double> value;      // none: not measured
  std::optional<double> low, high;  // 95 % interval, or a standard deviation to both sides
};

struct ReportRow {
  std::string name;
  std::vector<ReportCell> cells;  // one per column
  bool published = false;         // of the paper, not measured here
  bool drawn = true;              // in the chart, too
};

struct ReportTable {
  std::string title, note;  // the note may be empty
  std::vector<std::string> columns;
  std::vector<ReportRow> rows;
  int decimals = 2;
};

// A file that a command of llava-eval printed with --json.
struct ReportInput {
  std::string name;  // of the model, in the tables
  std::filesystem::path file;
};

// Tables for all inputs, those of one kind together, published values last. Kinds: scienceqa score,
// judge summarize (COCO and in the wild apart), vqa, chat-quality (results of one name are seeds of
// a model: their mean). Judgements that are not whole, reviews without scores and questions without
// answers are told in the note. Throws std::runtime_error naming a file that cannot be read or is
// none of these.
std::vector<ReportTable> MakeReport(const std::vector<ReportInput>& inputs);

std::string ReportMarkdown(const std::string& title, const std::vector<ReportTable>& tables);
// One file without anything from elsewhere: tables, and a bar chart of each as SVG.
std::string ReportHtml(const std::string& title, const std::vector<ReportTable>& tables);

// Bars by column, a series a row that is drawn, with whiskers where there are intervals.
std::string BarsSvg(const ReportTable& table);

// Text within HTML or SVG.
std::string EscapedHtml(std::string_view text);

// The paper's values, as JSON.
std::string_view PaperValuesJson();

}  // namespace llava
