#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint/json_object.h"
#include "model/eval/report/report.h"
#include "model/eval/share.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kAverage = "average";
constexpr std::string_view kWild = "llava_bench_";

std::optional<double> NumberAt(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

int64_t CountAt(const Json& object, const std::string& key) {
  return static_cast<int64_t>(NumberAt(object, key).value_or(0));
}

// An object within an object; empty if there is none.
const Json& At(const Json& object, const std::string& key) {
  static const Json kNothing = Json::object();
  const auto found = object.find(key);
  return found != object.end() && found->is_object() ? *found : kNothing;
}

void AddPublished(const std::string& key, ReportTable& table) {
  static const Json paper = Json::parse(PaperValuesJson());
  const Json& published = paper.at(key);
  std::map<std::string, size_t> places;
  for (size_t i = 0; i < published["columns"].size(); ++i) {
    places[published["columns"][i].get<std::string>()] = i;
  }
  for (const Json& row : published["rows"]) {
    ReportRow to{row["name"].get<std::string>(), {}, true, row.value("chart", false)};
    for (const std::string& column : table.columns) {
      const auto place = places.find(column);
      ReportCell cell;
      if (place != places.end() && row["values"][place->second].is_number()) {
        cell.value = row["values"][place->second].get<double>();
      }
      to.cells.push_back(cell);
    }
    table.rows.push_back(std::move(to));
  }
}

ReportRow ScienceRow(const std::string& name, const Json& score,
                     const std::vector<std::string>& columns) {
  ReportRow row{name, {}};
  for (const std::string& column : columns) {
    const Json& found = At(At(score, "classes"), column);
    row.cells.push_back({NumberAt(found, "acc"), NumberAt(found, "low"), NumberAt(found, "high")});
  }
  return row;
}

// What of an accuracy is no answer; empty if there is nothing.
std::string ScienceComplaint(const std::string& name, const Json& score) {
  constexpr std::array<std::pair<const char*, const char*>, 3> kReasons = {
      {{"missing", "without an answer"},
       {"unread", "not readable"},
       {"out_of_range", "no such choice"}}};
  const Json& failures = At(score, "failures");
  std::string list;
  for (const auto& [key, what] : kReasons) {
    const int64_t count = CountAt(failures, key);
    if (count <= 0) continue;
    list += (list.empty() ? "" : ", ") + std::to_string(count) + " " + what;
  }
  return list.empty() ? "" : " " + name + ": counted as wrong: " + list + ".";
}

struct Read {
  std::string name;
  Json json;
};

std::optional<ReportTable> ScienceTable(const std::vector<Read>& inputs) {
  if (inputs.empty()) return std::nullopt;
  ReportTable table{"ScienceQA", "Right answers in %; intervals: 95 %, Wilson.", {}, {}, 2};
  table.columns = {"NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "AVG"};
  for (const auto& [name, json] : inputs) {
    const auto add = [&](const std::string& row, const Json& score) {
      table.rows.push_back(ScienceRow(row, score, table.columns));
      table.note += ScienceComplaint(row, score);
    };
    add(name, json);
    constexpr std::array<std::pair<const char*, const char*>, 3> kOthers = {
        {{"second", "second model"}, {"complement", "complement"}, {"judge", "judge"}}};
    for (const auto& [key, what] : kOthers) {
      if (json.contains(key)) add(name + ", " + what, json[key]);
    }
  }
  AddPublished("scienceqa", table);
  return table;
}

// Whether the categories have the names of the benchmark in the wild.
bool IsWild(const Json& categories) {
  return std::any_of(categories.items().begin(), categories.items().end(),
                     [](const auto& one) { return one.key().starts_with(kWild); });
}

int64_t NumWithoutScores(const Json& category) {
  return CountAt(category, "unread") + CountAt(category, "mended");
}

// Whether no review of the category has scores by the published rule; its figure is none then.
bool NoneHasScores(const Json& category) {
  const int64_t without = NumWithoutScores(category);
  return without > 0 && without == CountAt(category, "count");
}

// What the figure of a file of reviews is made of beside scores from 0 to 10.
std::string ScoresComplaint(const std::string& name, const Json& file) {
  const Json& all = At(At(file, "categories"), "all");
  const int64_t outside = CountAt(all, "outside"), without = NumWithoutScores(all);
  if (without + outside == 0) return "";
  std::string text = " " + name + ": ";
  if (NoneHasScores(all)) {
    text += "no figure, none of " + std::to_string(without) +
            " reviews has scores by the published rule";
  } else if (without > 0) {
    text += std::to_string(without) + " reviews without scores by the published rule count as -1";
  }
  if (outside > 0) {
    text += (without > 0 ? ", " : "") + std::to_string(outside) +
            " reviews with scores that are not from 0 to 10 count as they are";
  }
  if (const auto relative = NumberAt(all, "relative_of_read")) {
    char number[32];
    std::snprintf(number, sizeof(number), "%.1f", *relative);
    text += std::string("; relative of those read kindly: ") + number;
  }
  return text + ".";
}

// What keeps the files of a result from being one whole judgement; empty if nothing does.
std::string JudgeComplaint(const std::string& name, const Json& json) {
  std::string text;
  if (json["files"].size() > 1 && At(json, kAverage).empty()) {
    text += " " + name + ": no mean, the files review different questions.";
  }
  int64_t missing = 0;
  for (const Json& file : json["files"]) {
    missing += CountAt(file, "missing");
    const auto path = file.find("file");
    const bool several = json["files"].size() > 1 && path != file.end() && path->is_string();
    const std::string which =
        several ? " (" + fs::path(path->get<std::string>()).filename().string() + ")" : "";
    text += ScoresComplaint(name + which, file);
  }
  if (missing > 0) {
    text +=
        " " + name + ": not all was judged, " + std::to_string(missing) + " reviews are missing.";
  }
  return text;
}

// The categories of one file of reviews, or the mean of several; nothing of several without one.
ReportRow JudgeReportRow(const std::string& name, const Json& json,
                         const std::vector<std::string>& columns, bool wild) {
  ReportRow row{name, {}};
  const Json& average = At(json, kAverage);
  const bool several = json["files"].size() > 1;
  for (const std::string& column : columns) {
    const std::string category = wild && column != "all" ? std::string(kWild) + column : column;
    ReportCell cell;
    const bool none = std::any_of(
        json["files"].begin(), json["files"].end(),
        [&](const Json& file) { return NoneHasScores(At(At(file, "categories"), category)); });
    if (none) {
      row.cells.push_back(cell);
      continue;
    }
    if (several || !average.empty()) {
      const Json& relative = At(At(average, category), "relative");
      cell.value = NumberAt(relative, "mean");
      if (const auto deviation = NumberAt(relative, "deviation"); deviation && cell.value) {
        cell.low = *cell.value - *deviation;
        cell.high = *cell.value + *deviation;
      }
    } else {
      const Json& found = At(At(json["files"][0], "categories"), category);
      cell = {NumberAt(found, "relative"), NumberAt(found, "low"), NumberAt(found, "high")};
    }
    row.cells.push_back(cell);
  }
  return row;
}

std::optional<ReportTable> JudgeReportTable(const std::vector<Read>& inputs, bool wild) {
  ReportTable table{wild ? "Judge, in the wild" : "Judge, COCO and own questions",
                    "Mean score in % of the reference's. Intervals: 95 %, bootstrap; of several "
                    "runs, a standard deviation.",
                    {"conv", "detail", "complex", "all"},
                    {},
                    1};
  for (const auto& [name, json] : inputs) {
    if (IsWild(At(json["files"][0], "categories")) != wild) continue;
    table.rows.push_back(JudgeReportRow(name, json, table.columns, wild));
    table.note += JudgeComplaint(name, json);
  }
  if (table.rows.empty()) return std::nullopt;
  AddPublished(wild ? "judge_wild" : "judge", table);
  return table;
}

std::optional<ReportTable> PopeTable(const std::vector<Read>& inputs) {
  ReportTable table{"POPE",
                    "In %, of all questions; F1 is the mean of the categories.",
                    {"POPE F1", "accuracy", "precision", "recall", "yes"},
                    {},
                    1};
  for (const auto& [name, json] : inputs) {
    if (json.value("metric", "") != "pope") continue;
    const Json& all = At(json, "all");
    const auto percent = [](std::optional<double> share) -> ReportCell {
      if (share) share = 100 * *share;
      return {share, {}, {}};
    };
    table.rows.push_back({name,
                          {percent(NumberAt(json, "mean_f1")), percent(NumberAt(all, "accuracy")),
                           percent(NumberAt(all, "precision")), percent(NumberAt(all, "recall")),
                           percent(NumberAt(all, "yes_ratio"))}});
  }
  if (table.rows.empty()) return std::nullopt;
  AddPublished("vqa", table);
  return table;
}

std::optional<ReportTable> VqaTable(const std::vector<Read>& inputs) {
  ReportTable table{"Short answers",
                    "Accuracy in %. Published: soft accuracy of VQAv2 and TextVQA, exact match of "
                    "GQA.",
                    {"soft", "exact", "VQAv2", "TextVQA", "GQA"},
                    {},
                    1};
  for (const auto& [name, json] : inputs) {
    const std::string metric = json.value("metric", "");
    if (metric == "pope") continue;
    ReportRow row{name, std::vector<ReportCell>(table.columns.size())};
    row.cells[metric == "exact" ? 1 : 0].value = NumberAt(json, "acc");
    table.rows.push_back(std::move(row));
    if (const int64_t missing = CountAt(json, "missing"); missing > 0) {
      table.note +=
          " " + name + ": counted as wrong: " + std::to_string(missing) + " without an answer.";
    }
  }
  if (table.rows.empty()) return std::nullopt;
  AddPublished("vqa", table);
  return table;
}

// Groups of questions in the order of chat-quality, others behind them, the average of all last.
std::vector<std::string> QualityColumns(const std::vector<Read>& inputs) {
  std::vector<std::string> columns = {"naming", "counting",  "left_right", "existence",
                                      "place",  "reasoning", "follow_up",  "chains",
                                      "detail", "bigger",    "background"};
  const auto measured = [&](const std::string& group) {
    return std::any_of(inputs.begin(), inputs.end(), [&](const Read& input) {
      return At(input.json, group).contains("accuracy");
    });
  };
  std::erase_if(columns, [&](const std::string& group) { return !measured(group); });
  for (const Read& input : inputs) {
    for (const auto& [group, value] : input.json.items()) {
      const bool known = std::find(columns.begin(), columns.end(), group) != columns.end();
      if (!known && measured(group)) columns.push_back(group);
    }
  }
  if (columns.size() > 1) columns.push_back(kAverage);
  return columns;
}

// Of one result; an average has no interval.
ReportCell QualityCell(const Json& json, const std::vector<std::string>& columns,
                       const std::string& column) {
  const auto percent = [&](const std::string& group, const char* key) {
    auto share = NumberAt(At(json, group), key);
    if (share) share = 100 * *share;
    return share;
  };
  if (column != kAverage) {
    return {percent(column, "accuracy"), percent(column, "low"), percent(column, "high")};
  }
  std::vector<double> groups;
  for (const std::string& group : columns) {
    if (const auto value = percent(group, "accuracy")) groups.push_back(*value);
  }
  return {groups.empty() ? std::nullopt : std::optional(SpreadOf(groups).mean), {}, {}};
}

std::optional<ReportTable> QualityTable(const std::vector<Read>& inputs) {
  if (inputs.empty()) return std::nullopt;
  ReportTable table{"Questions about scenes",
                    "Right answers in %; intervals: 95 %, Wilson; of several results of one name, "
                    "as of seeds, the mean and a standard deviation.",
                    QualityColumns(inputs),
                    {},
                    1};
  std::map<std::string, std::vector<const Read*>> seeds;  // of one name
  for (const Read& input : inputs) seeds[input.name].push_back(&input);
  for (const Read& input : inputs) {
    const auto& same = seeds[input.name];
    if (same.front() != &input) continue;
    ReportRow row{input.name, {}};
    for (const std::string& column : table.columns) {
      row.cells.push_back(QualityCell(input.json, table.columns, column));
      std::vector<double> values;
      for (const Read* one : same) {
        const ReportCell cell = QualityCell(one->json, table.columns, column);
        if (cell.value) values.push_back(*cell.value);
      }
      if (values.size() < 2) continue;
      const Spread spread = SpreadOf(values);
      row.cells.back() = {spread.mean, spread.mean - *spread.deviation,
                          spread.mean + *spread.deviation};
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::string KindOf(const Json& json) {
  const std::string kind = json.value("kind", "");
  if (kind == "judge" &&
      !(json.contains("files") && json["files"].is_array() && !json["files"].empty())) {
    return "";
  }
  if (kind.empty() && json.contains("types") && json.contains("settings")) return "chat-quality";
  return kind;
}

}  // namespace

std::vector<ReportTable> MakeReport(const std::vector<ReportInput>& inputs) {
  std::map<std::string, std::vector<Read>> by_kind = {
      {"scienceqa", {}}, {"judge", {}}, {"vqa", {}}, {"chat-quality", {}}};
  for (const ReportInput& input : inputs) {
    Json json = JsonObject::Read(input.file).value();
    const auto kind = by_kind.find(KindOf(json));
    if (kind == by_kind.end()) {
      throw std::runtime_error(input.file.string() +
                               ": not what a command of llava-eval prints with --json");
    }
    kind->second.push_back({input.name, std::move(json)});
  }
  std::vector<ReportTable> tables;
  for (std::optional<ReportTable> table :
       {ScienceTable(by_kind["scienceqa"]), JudgeReportTable(by_kind["judge"], false),
        JudgeReportTable(by_kind["judge"], true), VqaTable(by_kind["vqa"]),
        PopeTable(by_kind["vqa"]), QualityTable(by_kind["chat-quality"])}) {
    if (table) tables.push_back(*std::move(table));
  }
  return tables;
}

}  // namespace llava
