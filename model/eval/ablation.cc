#include "model/eval/ablation.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/text/json_text.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kAverage = "average";
// Settings of chat-quality that choose the questions.
constexpr const char* kExam[] = {"seed",    "per_type",  "categories", "objects",
                                 "repeats", "positions", "held_out"};

struct Result {
  std::filesystem::path file;
  std::vector<std::pair<std::string, double>> groups;  // name, share of right answers
  Json exam = Json::object();
};

[[noreturn]] void RefuseFile(const std::filesystem::path& file, const std::string& what) {
  throw std::runtime_error(file.string() + ": " + what +
                           ": not what `llava-eval chat-quality --json` prints");
}

Result ReadResult(const std::filesystem::path& file) {
  const std::string text = ReadSmallFile(file);
  Json json;
  try {
    json = ParseJson<Json>(text);
  } catch (const std::invalid_argument& error) {
    RefuseFile(file, std::string("no JSON: ") + error.what());
  }
  if (!json.is_object() || !json.contains("settings") || !json["settings"].is_object()) {
    RefuseFile(file, "has no \"settings\"");
  }
  Result result{.file = file, .groups = {}};
  for (const char* key : kExam) {
    if (!json["settings"].contains(key)) {
      RefuseFile(file, "has no \"settings/" + std::string(key) + "\"");
    }
    result.exam[key] = json["settings"][key];
  }
  for (const auto& [name, row] : json.items()) {
    if (name == "settings" || name == "types") continue;
    const bool has = row.is_object() && row.contains("accuracy") && row["accuracy"].is_number();
    const double share = has ? row["accuracy"].get<double>() : -1;
    if (!(share >= 0 && share <= 1)) {
      RefuseFile(file, "\"" + name + "\" has no accuracy from 0 to 1");
    }
    result.groups.emplace_back(name, share);
  }
  if (result.groups.empty()) RefuseFile(file, "has no groups of questions");
  return result;
}

std::string Listed(const std::vector<std::pair<std::string, double>>& groups) {
  std::string list;
  for (const auto& [name, share] : groups) list += " " + name;
  return list;
}

// Both are answers to the same questions.
void CheckComparable(const Result& result, const Result& first) {
  for (const char* key : kExam) {
    if (result.exam[key] == first.exam[key]) continue;
    throw std::invalid_argument(result.file.string() + ": \"" + key + "\" of its exam is " +
                                result.exam[key].dump() + ", of " + first.file.string() + " " +
                                first.exam[key].dump() +
                                ": only answers to the same questions can be compared");
  }
  const bool same = std::equal(result.groups.begin(), result.groups.end(), first.groups.begin(),
                               first.groups.end(),
                               [](const auto& a, const auto& b) { return a.first == b.first; });
  if (same) return;
  throw std::invalid_argument(result.file.string() + " has the groups" + Listed(result.groups) +
                              "; " + first.file.string() + " has" + Listed(first.groups));
}

std::string Percent(const char* format, double share) {
  char text[32];
  std::snprintf(text, sizeof(text), format, 100 * share);
  return text;
}

std::string Difference(double share) {
  const std::string text = Percent("%+.1f", share);
  return text == "-0.0" || text == "+0.0" ? "0.0" : text;
}

}  // namespace

Ablation ReadAblation(const std::vector<AblationVariant>& variants) {
  if (variants.empty()) throw std::invalid_argument("no variants to compare");
  Ablation ablation;
  std::optional<Result> first;
  std::set<std::filesystem::path> known;
  for (const AblationVariant& variant : variants) {
    if (variant.results.empty()) {
      throw std::invalid_argument("variant \"" + variant.name + "\" has no results");
    }
    std::vector<std::vector<double>> shares;  // group, seed
    for (const std::filesystem::path& file : variant.results) {
      Result result = ReadResult(file);
      if (!known.insert(std::filesystem::canonical(file)).second) {
        throw std::invalid_argument(file.string() + " is given twice");
      }
      if (!first) first = result;
      CheckComparable(result, *first);
      double sum = 0;
      for (const auto& [name, share] : result.groups) sum += share;
      result.groups.emplace_back(kAverage, sum / static_cast<double>(result.groups.size()));
      shares.resize(result.groups.size());
      for (size_t i = 0; i < shares.size(); ++i) shares[i].push_back(result.groups[i].second);
    }
    Ablation::Column column{variant.name, variant.results.size(), {}};
    for (const std::vector<double>& group : shares) column.shares.push_back(SpreadOf(group));
    ablation.columns.push_back(std::move(column));
  }
  for (const auto& [name, share] : first->groups) ablation.groups.push_back(name);
  ablation.groups.emplace_back(kAverage);
  return ablation;
}

std::string AblationMarkdown(const Ablation& ablation, const std::string& reference) {
  const Ablation::Column* base = nullptr;
  std::string names;
  for (const Ablation::Column& column : ablation.columns) {
    if (column.variant == reference) base = &column;
    names += " \"" + column.variant + "\"";
  }
  if (!base && !reference.empty()) {
    throw std::invalid_argument("no variant is called \"" + reference + "\"; there are" + names);
  }
  std::string head = "| group |", line = "| --- |", seeds = "| seeds |";
  for (const Ablation::Column& column : ablation.columns) {
    ((head += ' ') += column.variant) += " |";
    line += " --- |";
    ((seeds += ' ') += std::to_string(column.seeds)) += " |";
  }
  std::string table = head + "\n" + line + "\n";
  for (size_t g = 0; g < ablation.groups.size(); ++g) {
    const char* bold = g + 1 == ablation.groups.size() ? "**" : "";
    (((table += "| ") += bold) += ablation.groups[g]) += bold;
    table += " |";
    for (const Ablation::Column& column : ablation.columns) {
      const Spread& spread = column.shares[g];
      (table += ' ') += Percent("%.1f", spread.mean);
      if (spread.deviation) table += " ± " + Percent("%.1f", *spread.deviation);
      if (base && &column != base) {
        table += " (" + Difference(spread.mean - base->shares[g].mean) + ")";
      }
      table += " |";
    }
    table += "\n";
  }
  return table + seeds + "\n";
}

BarChart AblationChart(const Ablation& ablation) {
  BarChart chart{"Right answers in %: mean over the seeds and standard deviation", {}, {}};
  for (std::string group : ablation.groups) {
    std::replace(group.begin(), group.end(), '_', ' ');
    chart.groups.push_back(std::move(group));
  }
  for (const Ablation::Column& column : ablation.columns) {
    BarSeries series{column.variant, {}, {}, {}};
    for (const Spread& spread : column.shares) {
      series.values.push_back(100 * spread.mean);
      if (!spread.deviation) continue;
      // A share lies between 0 and 1, whatever a symmetric whisker would say.
      series.low.push_back(100 * std::max(0.0, spread.mean - *spread.deviation));
      series.high.push_back(100 * std::min(1.0, spread.mean + *spread.deviation));
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

}  // namespace llava
