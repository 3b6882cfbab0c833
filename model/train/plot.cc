#include "model/train/plot.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <utility>

namespace llava {
namespace {

using nlohmann::json;

constexpr const char* kHeldOutLoss = "held_out_loss";
constexpr const char* kLearningRate = "learning_rate";
constexpr const char* kTokensPerSecond = "tokens_per_second";

struct Run {
  std::string name;
  std::map<std::string, std::map<double, double>> figures;  // name -> step -> value
  std::set<std::string> evaluated;  // those that come from evaluations, in few steps
};

void AddFigures(const json& line, double step, Run& run) {
  for (const auto& [key, value] : line.items()) {
    if (value.is_number() && key != "step") run.figures[key][step] = value;
  }
  for (const char* part : {"figures", "evaluation"}) {
    const auto figures = line.find(part);
    if (figures == line.end()) continue;
    for (const auto& [key, value] : figures->items()) {
      if (!value.is_number()) continue;
      run.figures[key][step] = value;
      if (part == std::string_view("evaluation")) run.evaluated.insert(key);
    }
  }
  const auto number = [&line](const char* key) {
    const auto value = line.find(key);
    return value != line.end() && value->is_number() ? value->get<double>() : 0;
  };
  if (number("seconds") > 0 && number("tokens") > 0) {
    run.figures[kTokensPerSecond][step] = number("tokens") / number("seconds");
  }
}

Run ReadRun(const std::filesystem::path& path) {
  const bool folder = std::filesystem::is_directory(path);
  const std::filesystem::path file = folder ? path / "metrics.jsonl" : path;
  std::ifstream stream(file);
  if (!stream) throw std::runtime_error(file.string() + ": cannot be read");
  // "runs/a/" and "runs/a/metrics.jsonl" are both called "a".
  std::filesystem::path named = std::filesystem::absolute(file).lexically_normal();
  if (named.filename() == "metrics.jsonl") named = named.parent_path();
  Run run;
  run.name = named.stem().string();
  std::string text;
  for (int number = 1; std::getline(stream, text); ++number) {
    if (text.empty()) continue;
    const json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number()) {
      if (stream.eof()) break;  // no line end: broken off
      throw std::runtime_error(file.string() + ":" + std::to_string(number) +
                               ": expected a JSON object with \"step\", found " +
                               text.substr(0, 80));
    }
    AddFigures(line, line["step"], run);
  }
  if (run.figures.empty()) throw std::runtime_error(file.string() + ": holds no metrics yet");
  return run;
}

std::vector<std::string> SplitAt(const std::string& text, char mark) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == mark) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

std::string Readable(std::string figure) {
  std::replace(figure.begin(), figure.end(), '_', ' ');
  return figure;
}

bool AnyHas(const std::vector<Run>& runs, const std::string& figure) {
  return std::any_of(runs.begin(), runs.end(),
                     [&](const Run& run) { return run.figures.contains(figure); });
}

std::vector<std::string> DefaultFigures(const std::vector<Run>& runs) {
  std::vector<std::string> figures = {
      AnyHas(runs, kHeldOutLoss) ? std::string("loss+") + kHeldOutLoss : std::string("loss")};
  for (const char* figure : {kLearningRate, "gradient_norm"}) {
    if (AnyHas(runs, figure)) figures.emplace_back(figure);
  }
  std::set<std::string> evaluated;
  for (const Run& run : runs) evaluated.insert(run.evaluated.begin(), run.evaluated.end());
  evaluated.erase(kHeldOutLoss);
  figures.insert(figures.end(), evaluated.begin(), evaluated.end());
  return figures;
}

[[noreturn]] void RefuseFigure(const std::vector<Run>& runs, const std::string& figure) {
  std::set<std::string> known;
  for (const Run& run : runs) {
    for (const auto& [name, values] : run.figures) known.insert(name);
  }
  std::string names;
  for (const std::string& name : known) names += " " + name;
  throw std::invalid_argument("no run has a figure \"" + figure + "\"; there are" + names);
}

LineChart ChartOf(const std::vector<Run>& runs, const std::string& figures, bool log) {
  LineChart chart;
  chart.x_label = "step";
  chart.log_y = log;
  const std::vector<std::string> names = SplitAt(figures, '+');
  for (size_t f = 0; f < names.size(); ++f) {
    if (!AnyHas(runs, names[f])) RefuseFigure(runs, names[f]);
    (chart.title += f > 0 ? ", " : "") += Readable(names[f]);
    for (size_t r = 0; r < runs.size(); ++r) {
      const auto values = runs[r].figures.find(names[f]);
      if (values == runs[r].figures.end()) continue;
      ChartCurve curve;
      // One colour per run, and per figure where a chart has several.
      if (names.size() == 1) {
        curve.name = runs.size() > 1 ? runs[r].name : "";
      } else {
        curve.name = (runs.size() > 1 ? runs[r].name + " " : "") + Readable(names[f]);
      }
      curve.colour = r * names.size() + f;
      curve.dotted = runs[r].evaluated.contains(names[f]);
      curve.noisy = !curve.dotted && names[f] != kLearningRate;
      for (const auto& [step, value] : values->second) {
        curve.x.push_back(step);
        curve.y.push_back(value);
      }
      chart.curves.push_back(std::move(curve));
    }
  }
  return chart;
}

}  // namespace

std::vector<ChartFrame> PlotMetrics(const std::vector<std::filesystem::path>& runs,
                                    const std::filesystem::path& png, const PlotOptions& options) {
  std::vector<Run> read;
  for (const std::filesystem::path& path : runs) read.push_back(ReadRun(path));
  std::vector<LineChart> charts;
  for (const std::string& figures :
       options.figures.empty() ? DefaultFigures(read) : options.figures) {
    charts.push_back(ChartOf(read, figures, options.log));
  }
  return DrawLineCharts(charts, options.columns, png);
}

}  // namespace llava
