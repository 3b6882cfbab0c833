#include "model/eval/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/eval/report/report.h"

namespace llava {
namespace {

struct Flags {
  std::vector<std::string> results;  // NAME=FILE or FILE
  std::string html, markdown, title = "Evaluation";
};

ReportInput InputOf(const std::string& result) {
  const size_t mark = result.find('=');
  if (mark != result.npos && mark > 0 && mark + 1 < result.size()) {
    return {result.substr(0, mark), result.substr(mark + 1)};
  }
  return {std::filesystem::path(result).stem().string(), result};
}

int Report(const Flags& flags) {
  std::vector<ReportInput> inputs;
  for (const std::string& result : flags.results) inputs.push_back(InputOf(result));
  const std::vector<ReportTable> tables = MakeReport(inputs);
  if (!flags.html.empty()) WriteDurably(flags.html, ReportHtml(flags.title, tables));
  const std::string markdown = ReportMarkdown(flags.title, tables);
  if (!flags.markdown.empty()) {
    WriteDurably(flags.markdown, markdown);
  } else if (flags.html.empty()) {
    std::printf("%s", markdown.c_str());
  }
  return 0;
}

}  // namespace

std::function<int()> AddReportCommand(CLI::App& app) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("report", "Results side by side and beside the paper's, as a document");
  command
      ->add_option("RESULTS", flags->results,
                   "FILE or NAME=FILE, FILE printed by another command with --json")
      ->required();
  command->add_option("--html", flags->html, "File of the document with charts, self-contained");
  command->add_option("--markdown", flags->markdown,
                      "File of its tables; without both files they are printed");
  command->add_option("--title", flags->title, "Of the document")->capture_default_str();
  return [flags] { return Report(*flags); };
}

}  // namespace llava
