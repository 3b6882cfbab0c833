#include "model/eval/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/eval/ablation.h"

namespace llava {
namespace {

struct Flags {
  std::vector<std::string> results;  // VARIANT=FILE
  std::string reference, markdown, plot;
};

std::vector<AblationVariant> Grouped(const std::vector<std::string>& results) {
  std::vector<AblationVariant> variants;
  for (const std::string& result : results) {
    const size_t mark = result.find('=');
    if (mark == 0 || mark == std::string::npos || mark + 1 == result.size()) {
      throw std::invalid_argument("\"" + result + "\": expected VARIANT=FILE");
    }
    const std::string name = result.substr(0, mark);
    auto variant = std::find_if(variants.begin(), variants.end(),
                                [&name](const AblationVariant& one) { return one.name == name; });
    if (variant == variants.end()) variant = variants.insert(variant, {name, {}});
    variant->results.emplace_back(result.substr(mark + 1));
  }
  return variants;
}

int Report(const Flags& flags) {
  const Ablation ablation = ReadAblation(Grouped(flags.results));
  const std::string table = AblationMarkdown(ablation, flags.reference);
  if (flags.markdown.empty()) {
    std::printf("%s", table.c_str());
  } else {
    WriteDurably(flags.markdown, table);
  }
  if (!flags.plot.empty()) DrawBarChart(AblationChart(ablation), flags.plot);
  return 0;
}

}  // namespace

std::function<int()> AddAblationCommand(CLI::App& app) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "ablation", "Results of chat-quality side by side: variants of a model, some seeds each");
  command
      ->add_option("RESULTS", flags->results,
                   "VARIANT=FILE, FILE of chat-quality --json; a variant as often as it has seeds")
      ->required();
  command->add_option("--reference", flags->reference,
                      "Variant from which the others' differences are told");
  command->add_option("--markdown", flags->markdown, "File of the table, instead of printing it");
  command->add_option("--plot", flags->plot, "PNG file of a bar chart");
  return [flags] { return Report(*flags); };
}

}  // namespace llava
