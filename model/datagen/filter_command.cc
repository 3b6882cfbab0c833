#include "model/datagen/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/datagen/captioned_images.h"
#include "model/datagen/delimited_file.h"
#include "model/datagen/noun_phrases.h"
#include "model/datagen/phrase_filter.h"
#include "model/progress/progress.h"

namespace llava {
namespace {

struct Flags {
  std::string cc3m, csv, phrases, out, report;
  PhraseIndex::Rules rules;
};

// In the order of the file's lines, as phrases are.
std::vector<ImageCaption> ReadPairs(const Flags& flags) {
  if (flags.cc3m.empty() == flags.csv.empty()) {
    throw std::invalid_argument("name one list: --cc3m or --csv");
  }
  if (flags.cc3m.empty()) return ReadCaptionLines(flags.csv);
  std::vector<ImageCaption> pairs;
  for (CaptionedImage& image : ReadCc3mList(flags.cc3m)) {
    for (std::string& caption : image.captions) pairs.push_back({image.file, std::move(caption)});
  }
  return pairs;
}

// Lines of phrases with tabs between them, a line for each caption.
void ReadPhrases(const std::string& path, size_t captions, PhraseIndex& index) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::invalid_argument(path + ": cannot be read: " + std::strerror(errno));
  size_t lines = 0;
  std::vector<std::string> phrases;
  for (std::string line; std::getline(file, line); ++lines) {
    if (line.ends_with('\r')) line.pop_back();
    phrases.clear();
    for (size_t at = 0; at < line.size();) {
      const size_t end = std::min(line.find('\t', at), line.size());
      if (end > at) phrases.push_back(line.substr(at, end - at));
      at = end + 1;
    }
    if (lines < captions) index.Add(phrases);
  }
  if (lines != captions) {
    throw std::invalid_argument(path + ": has " + std::to_string(lines) + " lines for " +
                                std::to_string(captions) + " captions, one for each is expected");
  }
}

int Run(const Flags& flags) {
  const std::vector<ImageCaption> pairs = ReadPairs(flags);
  if (pairs.empty()) throw std::invalid_argument("the list holds no captions");
  PhraseIndex index;
  if (!flags.phrases.empty()) {
    ReadPhrases(flags.phrases, pairs.size(), index);
  } else {
    Progress progress(stderr, "finding phrases", pairs.size());
    for (size_t i = 0; i < pairs.size(); ++i) {
      index.Add(NounPhrases(pairs[i].caption));
      progress.Update(i + 1);
    }
    progress.Finish(pairs.size());
  }
  const std::vector<uint32_t> chosen = index.Choose(flags.rules);
  StagedFile file(flags.out);
  file.Write("image,caption\n");
  for (const uint32_t number : chosen) {
    file.Write(CsvField(pairs[number].image) + "," + CsvField(pairs[number].caption) + "\n");
  }
  file.Commit();
  const nlohmann::ordered_json report = {{"min_frequency", flags.rules.min_frequency},
                                         {"cap", flags.rules.cap},
                                         {"seed", flags.rules.seed},
                                         {"before", index.Statistics(flags.rules)},
                                         {"after", index.Statistics(flags.rules, chosen)}};
  if (!flags.report.empty()) {
    WriteDurably(flags.report,
                 report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  std::printf("%-34s %12s %12s\n", "", "before", "after");
  for (const auto& [key, text] :
       {std::pair("captions", "captions"), std::pair("without_phrase", "  without a noun phrase"),
        std::pair("phrases", "unique noun phrases"),
        std::pair("frequent_phrases", "  frequent enough"),
        std::pair("phrases_over_cap", "  above the cap"),
        std::pair("mentions", "phrases in captions")}) {
    std::printf("%-34s %12s %12s\n", text, report["before"][key].dump().c_str(),
                report["after"][key].dump().c_str());
  }
  for (const auto& [range, count] : report["before"]["frequency"].items()) {
    std::printf("%-34s %12s %12s\n", ("  phrases in " + range + " captions").c_str(),
                count.dump().c_str(), report["after"]["frequency"][range].dump().c_str());
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace

std::function<int()> AddFilterCommand(CLI::App& app) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "filter-cc3m", "Chooses image-text pairs so that many things are named, none too often");
  command->add_option("--cc3m", flags->cc3m, "CC3M's list: lines of caption, tab, URL");
  command->add_option("--csv", flags->csv, "Table with columns \"image\" and \"caption\" instead");
  command->add_option("--out", flags->out, "Table (CSV) of the chosen pairs")->required();
  command->add_option("--report", flags->report, "File for the statistics as JSON");
  command->add_option("--phrases", flags->phrases,
                      "Phrases of another extractor: a line for each caption, tabs between them");
  command
      ->add_option("--min-frequency", flags->rules.min_frequency,
                   "Captions that a phrase must be in to count")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1'000'000}))
      ->capture_default_str();
  command->add_option("--cap", flags->rules.cap, "Captions that a frequent phrase adds at most")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1'000'000'000}))
      ->capture_default_str();
  command->add_option("--seed", flags->rules.seed, "Of the captions of frequent phrases")
      ->capture_default_str();
  return [flags] { return Run(*flags); };
}

}  // namespace llava
