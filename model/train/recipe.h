#pragma once

// The settings of a training run: a JSON file (comments allowed), changed by "key=value" pairs,
// read by name with a default and a meaning. What nobody has asked for is a mistake and is refused.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llava {

// Settings are named by dotted paths, as "optimizer.learning_rate". One thread. Every getter throws
// std::invalid_argument naming setting, value and the range or the type that was expected.
class Recipe {
 public:
  // An empty one: all defaults.
  Recipe() : value_(nlohmann::ordered_json::object()) {}
  // A setting may be written as objects in objects or by its dotted path, but once. Throws
  // std::invalid_argument naming the file and the place of the first mistake.
  static Recipe Read(const std::filesystem::path& path);
  static Recipe Parse(std::string_view json, const std::string& where);

  // "optimizer.learning_rate=1e-3"; the value is JSON, or text where it is no JSON.
  void Set(std::string_view assignment);

  // `meaning`: one line for `llava-train describe`, with the unit.
  int64_t Int(const std::string& key, int64_t fallback, const std::string& meaning,
              int64_t least = 0, int64_t most = INT64_MAX);
  // The same where there may be none, which is null in the file and the default.
  std::optional<int64_t> OptionalInt(const std::string& key, const std::string& meaning,
                                     int64_t least = 0, int64_t most = INT64_MAX);
  double Number(const std::string& key, double fallback, const std::string& meaning,
                double least = 0, double most = 1e300);
  bool Flag(const std::string& key, bool fallback, const std::string& meaning);
  std::string Text(const std::string& key, const std::string& fallback, const std::string& meaning);
  // What the chosen name stands for; `fallback` must be one of the names.
  template <typename Value>
  Value Choice(const std::string& key, const std::string& fallback,
               const std::vector<std::pair<std::string, Value>>& choices,
               const std::string& meaning) {
    std::vector<std::string> names;
    for (const auto& [name, value] : choices) names.push_back(name);
    return choices[NumberOfChoice(key, fallback, names, meaning)].second;
  }

  // Throws std::invalid_argument listing the settings of the file that nothing has read, each with
  // the nearest known name.
  void CheckAllRead() const;

  // What was read, in that order.
  struct Setting {
    std::string key, meaning;
    nlohmann::ordered_json value;
    bool is_default = true;
  };
  const std::vector<Setting>& settings() const { return settings_; }
  // The settings as one JSON object, defaults filled in: repeats the run.
  nlohmann::ordered_json Resolved() const;
  // Only those that nobody gave: their defaults.
  nlohmann::ordered_json Defaults() const;

 private:
  size_t NumberOfChoice(const std::string& key, const std::string& fallback,
                        const std::vector<std::string>& choices, const std::string& meaning);
  // The value given for `key`, if any.
  std::optional<nlohmann::ordered_json> Find(const std::string& key) const;
  void Note(const std::string& key, const std::string& meaning, nlohmann::ordered_json value,
            bool is_default);

  nlohmann::ordered_json value_;
  std::vector<Setting> settings_;
};

}  // namespace llava
