// llava-model list, pin, unpin, label, rollback, gc: versions of a model repository and what is
// said about them.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint/manifest.h"
#include "model/checkpoint/repository.h"
#include "model/checkpoint/version_folder.h"
#include "model/tools/commands.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Model {
  ModelRepository repository;
  std::string name;
};

// ROOT/NAME.
Model Split(const fs::path& path) {
  const ModelPath model(path);
  return {ModelRepository(model.root), model.name};
}

json Describe(const ModelRepository& repository, const std::string& name, uint64_t version,
              const ModelMarks& marks) {
  json row = {{"version", version}, {"labels", json::array()}};
  for (const auto& [label, labelled] : marks.labels) {
    if (labelled == version) row["labels"].push_back(label);
  }
  row["pinned"] = marks.pinned.contains(version);
  try {
    const Manifest manifest = Manifest::Read(repository.Folder(name, version));
    uint64_t bytes = 0;
    for (const auto& [file, entry] : manifest.files) bytes += entry.size_bytes;
    row["kind"] = manifest.kind == Manifest::Kind::kTower ? "tower" : "language";
    row["bytes"] = bytes;
    row["digest"] = ToHex(manifest.digest);
    row["tower_digest"] = ToHex(manifest.tower_digest);
    row["self_test"] = !manifest.self_test_tolerances.empty();
    if (manifest.parent_version) row["parent_version"] = *manifest.parent_version;
  } catch (const std::exception& error) {
    row["error"] = error.what();
  }
  return row;
}

json Describe(const ModelRepository& repository, const std::string& name) {
  json model = {{"name", name}, {"versions", json::array()}};
  try {
    const ModelMarks marks = repository.Marks(name);
    model["labels"] = marks.labels;
    model["pinned"] = marks.pinned;
    for (const uint64_t version : repository.Versions(name)) {
      model["versions"].push_back(Describe(repository, name, version, marks));
    }
  } catch (const std::runtime_error& error) {
    model["error"] = error.what();
  }
  return model;
}

std::string Size(uint64_t bytes) {
  char text[32];
  const double value = static_cast<double>(bytes);
  if (bytes >= 1'000'000'000) {
    std::snprintf(text, sizeof(text), "%.2f GB", value / 1e9);
  } else if (bytes >= 1'000'000) {
    std::snprintf(text, sizeof(text), "%.1f MB", value / 1e6);
  } else {
    std::snprintf(text, sizeof(text), "%.1f kB", value / 1e3);
  }
  return text;
}

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line += std::string(widths[i] - row[i].size() + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::cout << line << "\n";
  }
}

std::string Marks(const json& row) {
  std::string text;
  for (const json& label : row["labels"]) {
    text += (text.empty() ? "" : ", ") + label.get<std::string>();
  }
  if (row["pinned"].get<bool>()) text += text.empty() ? "pinned" : ", pinned";
  return text;
}

// One line, or the same as JSON.
void Tell(bool as_json, const json& result, const std::string& line) {
  std::cout << (as_json ? result.dump(2) : line) << "\n";
}

std::string Named(const Model& model) { return model.repository.Folder(model.name).string(); }

}  // namespace

void RunList(const ListCommand& command) {
  if (!fs::is_directory(command.root)) {
    throw std::runtime_error(command.root.string() + ": is not a folder");
  }
  const ModelRepository repository(command.root);
  std::vector<std::string> names = repository.Models();
  if (!command.name.empty()) {
    if (!fs::is_directory(repository.Folder(command.name))) {
      throw std::runtime_error(repository.Folder(command.name).string() +
                               ": there is no such model");
    }
    names = {command.name};
  }
  json models = json::array();
  for (const std::string& name : names) models.push_back(Describe(repository, name));
  if (command.json) {
    std::cout << json{{"models", models}}.dump(2) << "\n";
    return;
  }
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "VERSION", "KIND", "SIZE", "SELF-TEST", "DIGEST", "TOWER", "MARKS"}};
  for (const json& model : models) {
    const std::string name = model["name"].get<std::string>();
    if (model.contains("error")) rows.push_back({name, "", model["error"].get<std::string>()});
    for (const json& row : model["versions"]) {
      const std::string version = row["version"].dump();
      if (row.contains("error")) {
        rows.push_back({name, version, "broken", "", "", "", "", Marks(row)});
        rows.back().back() +=
            (rows.back().back().empty() ? "" : "  ") + row["error"].get<std::string>();
        continue;
      }
      rows.push_back({name, version, row["kind"].get<std::string>(),
                      Size(row["bytes"].get<uint64_t>()),
                      row["self_test"].get<bool>() ? "yes" : "no",
                      row["digest"].get<std::string>().substr(0, 12),
                      row["tower_digest"].get<std::string>().substr(0, 12), Marks(row)});
    }
  }
  PrintTable(rows);
}

void RunPin(const MarkCommand& command, bool pinned) {
  Model model = Split(command.model);
  model.repository.Pin(model.name, command.version, pinned);
  Tell(command.json, {{"name", model.name}, {"version", command.version}, {"pinned", pinned}},
       Named(model) + "/" + std::to_string(command.version) +
           (pinned ? ": pinned" : ": not pinned"));
}

void RunLabel(const MarkCommand& command) {
  Model model = Split(command.model);
  const uint64_t before = model.repository.SetLabel(model.name, command.label, command.version);
  const std::string was = before == 0 ? "nothing" : "version " + std::to_string(before);
  Tell(command.json,
       {{"name", model.name},
        {"label", command.label},
        {"version", command.version},
        {"previous_version", before}},
       Named(model) + ": " + command.label + " is " +
           (command.version == 0 ? "taken away" : "version " + std::to_string(command.version)) +
           ", was " + was);
}

void RunRollback(const MarkCommand& command) {
  Model model = Split(command.model);
  const uint64_t version = model.repository.Rollback(model.name);
  Tell(command.json, {{"name", model.name}, {"label", "stable"}, {"version", version}},
       Named(model) + ": stable is version " + std::to_string(version) + " again");
}

void RunGc(const GcCommand& command) {
  Model model = Split(command.model);
  const std::vector<uint64_t> gone = model.repository.Gc(model.name, command.keep, command.dry_run);
  std::string list;
  for (const uint64_t version : gone) list += (list.empty() ? "" : ", ") + std::to_string(version);
  Tell(command.json, {{"name", model.name}, {"removed", gone}, {"dry_run", command.dry_run}},
       Named(model) + (command.dry_run ? ": would remove " : ": removed ") +
           (list.empty() ? "nothing" : "version " + list));
}

}  // namespace llava
