#include "model/datagen/instruct_report.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <utility>

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kExamples = 5;  // of each rule

template <typename Counts>
uint64_t Sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

template <typename Counts>
Json NamedCounts(const Counts& counts) {
  Json named = Json::object();
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] > 0) named[ToString(static_cast<Rule>(i))] = counts[i];
  }
  return named;
}

// A value of the report in a table's cell.
std::string Cell(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_number_float()) return value.dump();
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value.get<double>());
  return text;
}

std::string Row(const std::vector<std::string>& cells) {
  std::string row = "|";
  for (const std::string& cell : cells) {
    row += ' ';
    for (const char byte : cell) {
      if (byte == '|') row += '\\';
      row += byte == '\n' ? ' ' : byte;
    }
    row += " |";
  }
  return row + "\n";
}

std::string Head(const std::vector<std::string>& cells) {
  std::string rule = "|";
  for (size_t i = 0; i < cells.size(); ++i) rule += " --- |";
  return Row(cells) + rule + "\n";
}

}  // namespace

Json Distribution::ToJson() const {
  Json json = {{"count", values_.size()}};
  if (values_.empty()) return json;
  std::vector<uint32_t> sorted = values_;
  std::sort(sorted.begin(), sorted.end());
  const double sum = std::accumulate(sorted.begin(), sorted.end(), 0.0);
  json["mean"] = sum / static_cast<double>(sorted.size());
  json["least"] = sorted.front();
  json["median"] = sorted[sorted.size() / 2];
  json["p95"] = sorted[sorted.size() * 95 / 100];
  json["most"] = sorted.back();
  return json;
}

void InstructReport::AddKept(ResponseType type, const Screened& screened, bool image_first) {
  OfType& of_type = types_[static_cast<size_t>(type)];
  ++of_type.kept;
  if (screened.cut) ++of_type.cut[static_cast<size_t>(*screened.cut)];
  of_type.turns.Add(screened.turns.size());
  for (const QuestionAnswer& turn : screened.turns) {
    of_type.question_words.Add(CountWords(turn.question));
    of_type.answer_words.Add(CountWords(turn.answer));
  }
  if (image_first) ++image_first_;
}

void InstructReport::AddRejected(ResponseType type, Rule rule, const std::string& id,
                                 const std::string& detail) {
  ++types_[static_cast<size_t>(type)].rejected[static_cast<size_t>(rule)];
  std::vector<Example>& examples = examples_[rule];
  if (examples.size() < kExamples) examples.push_back({id, detail});
}

uint64_t InstructReport::kept() const {
  uint64_t kept = 0;
  for (const OfType& of_type : types_) kept += of_type.kept;
  return kept;
}

uint64_t InstructReport::rejected() const {
  uint64_t rejected = 0;
  for (const OfType& of_type : types_) rejected += Sum(of_type.rejected);
  return rejected;
}

Json InstructReport::ToJson() const {
  Json types = Json::object();
  for (const ResponseType type : kResponseTypes) {
    const OfType& of_type = types_[static_cast<size_t>(type)];
    const uint64_t planned = of_type.kept + Sum(of_type.rejected);
    if (planned == 0) continue;
    types[ToString(type)] = {{"planned", planned},
                             {"kept", of_type.kept},
                             {"cut", NamedCounts(of_type.cut)},
                             {"rejected", NamedCounts(of_type.rejected)},
                             {"turns", of_type.turns.ToJson()},
                             {"question_words", of_type.question_words.ToJson()},
                             {"answer_words", of_type.answer_words.ToJson()}};
  }
  Json examples = Json::object();
  for (const auto& [rule, list] : examples_) {
    for (const Example& example : list) {
      examples[ToString(rule)].push_back({{"id", example.id}, {"detail", example.detail}});
    }
  }
  return {{"run", run_},
          {"kept", kept()},
          {"rejected", rejected()},
          {"image_first", image_first_},
          {"types", types},
          {"examples", examples}};
}

std::string InstructReport::ToMarkdown() const {
  const Json report = ToJson();
  std::string text = "# Instruction data\n\n" + Head({"run", ""});
  for (const auto& [key, value] : run_.items()) {
    std::string words = key;
    std::replace(words.begin(), words.end(), '_', ' ');
    text += Row({words, Cell(value)});
  }
  text += Row({"records kept", std::to_string(kept())});
  text += Row({"rejected", std::to_string(rejected())});
  text += Row({"picture in front of the question", std::to_string(image_first_)});
  text += "\n## By type\n\n" + Head({"type", "planned", "kept", "cut short", "turns (mean)",
                                     "words of a question", "words of an answer", "95 % below"});
  for (const auto& [name, type] : report["types"].items()) {
    uint64_t cut = 0;
    for (const auto& [rule, count] : type["cut"].items()) cut += count.get<uint64_t>();
    const auto mean = [&, &type = type](const char* key) {
      return type[key].contains("mean") ? Cell(type[key]["mean"]) : std::string("-");
    };
    text += Row({name, Cell(type["planned"]), Cell(type["kept"]), std::to_string(cut),
                 mean("turns"), mean("question_words"), mean("answer_words"),
                 type["answer_words"].contains("p95") ? Cell(type["answer_words"]["p95"]) : "-"});
  }
  text += "\n## Rules\n\n\"Cut\" dialogues lost their end in front of the first bad turn.\n\n";
  std::vector<std::string> columns = {"rule"};
  for (const ResponseType type : kResponseTypes) {
    columns.push_back(std::string(ToString(type)) + ": rejected");
    columns.push_back("cut");
  }
  text += Head(columns);
  for (int i = 0; i < kNumRules; ++i) {
    std::vector<std::string> cells = {ToString(static_cast<Rule>(i))};
    for (const OfType& of_type : types_) {
      cells.push_back(std::to_string(of_type.rejected[i]));
      cells.push_back(std::to_string(of_type.cut[i]));
    }
    text += Row(cells);
  }
  if (!examples_.empty()) {
    text += "\n## Examples of what was rejected\n\n" + Head({"rule", "record", "what was wrong"});
    for (const auto& [rule, list] : examples_) {
      for (const Example& example : list) {
        text += Row({ToString(rule), example.id, example.detail});
      }
    }
  }
  return text;
}

}  // namespace llava
