#include "model/train/recipe.h"

#include <algorithm>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/text/json_text.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostParts = 16;  // of a setting's name

std::vector<std::string> Parts(std::string_view key) {
  std::vector<std::string> parts;
  std::istringstream stream{std::string(key)};
  for (std::string part; std::getline(stream, part, '.');) parts.push_back(part);
  return parts;
}

// Of one of the names that the program reads.
Json::json_pointer PlaceOf(std::string key) {
  std::replace(key.begin(), key.end(), '.', '/');
  return Json::json_pointer("/" + key);
}

[[noreturn]] void Fail(const std::string& key, const Json& value, const std::string& expected) {
  throw std::invalid_argument("setting \"" + key + "\" is " + value.dump() + ", expected " +
                              expected);
}

template <typename Number>
std::string RangeText(const char* what, Number least, Number most, Number open_end) {
  std::ostringstream text;
  text << what << " of at least " << least;
  if (most < open_end) text << " and at most " << most;
  return text.str();
}

// Levenshtein distance, for "did you mean".
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, change}));
    }
  }
  return row.back();
}

// Dotted names of all values in `object`.
void ListKeys(const Json& object, const std::string& prefix, std::vector<std::string>& keys) {
  for (const auto& [name, value] : object.items()) {
    if (value.is_object() && !value.empty()) {
      ListKeys(value, prefix + name + ".", keys);
    } else {
      keys.push_back(prefix + name);
    }
  }
}

// Puts the values of `from` into `into`. Names with dots ("adam.beta2", as messages and
// `llava-train describe` have them) become objects in objects. `prefix`: the name of `from` with a
// dot behind it. Throws std::invalid_argument for a setting that is given twice.
void WriteOut(const Json& from, const std::string& prefix, Json& into) {
  for (const auto& [name, value] : from.items()) {
    const std::string key = prefix + name;
    const auto refuse = [&](const std::string& what) {
      throw std::invalid_argument("setting \"" + key.substr(0, 80) + "\" " + what);
    };
    const std::vector<std::string> parts = Parts(key);
    if (key.empty() || key.back() == '.' ||
        std::any_of(parts.begin(), parts.end(), [](const auto& part) { return part.empty(); })) {
      refuse("is no name");
    }
    if (parts.size() > kMostParts) refuse("lies too deep");
    if (value.is_object() && !value.empty()) {
      WriteOut(value, key + ".", into);
      continue;
    }
    Json* place = &into;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const bool is_new = !place->contains(parts[i]);
      place = &(*place)[parts[i]];
      if (is_new) *place = Json::object();
      if (!place->is_object()) refuse("lies within \"" + parts[i] + "\", which is no object");
    }
    const bool is_new = !place->contains(parts.back());
    Json& last = (*place)[parts.back()];
    if (is_new) {
      last = value;
    } else if (!last.is_object() || !value.is_object()) {
      refuse("is given twice");
    }
  }
}

}  // namespace

Recipe Recipe::Read(const std::filesystem::path& path) {
  return Parse(ReadSmallFile(path), path.string());
}

Recipe Recipe::Parse(std::string_view json, const std::string& where) {
  Recipe recipe;
  try {
    const Json value = ParseJson<Json>(json, /*ignore_comments=*/true);
    if (!value.is_object()) throw std::invalid_argument("not a JSON object");
    WriteOut(value, "", recipe.value_);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(where + ": " + error.what());
  }
  return recipe;
}

void Recipe::Set(std::string_view assignment) {
  const size_t equals = assignment.find('=');
  const std::vector<std::string> parts = Parts(assignment.substr(0, equals));
  if (equals == std::string_view::npos || parts.empty() ||
      std::any_of(parts.begin(), parts.end(), [](const auto& part) { return part.empty(); })) {
    throw std::invalid_argument("--set " + std::string(assignment) +
                                ": expected key=value, as learning_rate=1e-3");
  }
  const std::string_view text = assignment.substr(equals + 1);
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) value = std::string(text);
  if (value.is_object()) {
    Json object = Json::object();
    WriteOut(value, "", object);
    value = std::move(object);
  }
  Json* place = &value_;
  for (const std::string& part : parts) {
    if (!place->is_object()) {
      throw std::invalid_argument("--set " + std::string(assignment) + ": \"" + part +
                                  "\" lies within a value that is no object");
    }
    place = &(*place)[part];
    if (place->is_null() && &part != &parts.back()) *place = Json::object();
  }
  *place = std::move(value);
}

std::optional<Json> Recipe::Find(const std::string& key) const {
  const Json::json_pointer place = PlaceOf(key);
  return value_.contains(place) ? std::optional(value_[place]) : std::nullopt;
}

void Recipe::Note(const std::string& key, const std::string& meaning, Json value, bool is_default) {
  const auto same = [&](const Setting& setting) { return setting.key == key; };
  if (std::any_of(settings_.begin(), settings_.end(), same)) return;  // read twice
  settings_.push_back({key, meaning, std::move(value), is_default});
}

int64_t Recipe::Int(const std::string& key, int64_t fallback, const std::string& meaning,
                    int64_t least, int64_t most) {
  const auto found = Find(key);
  const Json value = found.value_or(Json(fallback));
  if (!value.is_number_integer() || value.get<int64_t>() < least || value.get<int64_t>() > most) {
    Fail(key, value, RangeText<int64_t>("a whole number", least, most, INT64_MAX));
  }
  Note(key, meaning, value, !found);
  return value.get<int64_t>();
}

std::optional<int64_t> Recipe::OptionalInt(const std::string& key, const std::string& meaning,
                                           int64_t least, int64_t most) {
  const auto found = Find(key);
  if (found && !found->is_null()) return Int(key, least, meaning, least, most);
  Note(key, meaning, nullptr, !found);
  return std::nullopt;
}

double Recipe::Number(const std::string& key, double fallback, const std::string& meaning,
                      double least, double most) {
  const auto found = Find(key);
  const Json value = found.value_or(Json(fallback));
  if (!value.is_number() || !(value.get<double>() >= least) || !(value.get<double>() <= most)) {
    Fail(key, value, RangeText<double>("a number", least, most, 1e300));
  }
  Note(key, meaning, value, !found);
  return value.get<double>();
}

bool Recipe::Flag(const std::string& key, bool fallback, const std::string& meaning) {
  const auto found = Find(key);
  const Json value = found.value_or(Json(fallback));
  if (!value.is_boolean()) Fail(key, value, "true or false");
  Note(key, meaning, value, !found);
  return value.get<bool>();
}

std::string Recipe::Text(const std::string& key, const std::string& fallback,
                         const std::string& meaning) {
  const auto found = Find(key);
  const Json value = found.value_or(Json(fallback));
  if (!value.is_string()) Fail(key, value, "a text");
  Note(key, meaning, value, !found);
  return value.get<std::string>();
}

size_t Recipe::NumberOfChoice(const std::string& key, const std::string& fallback,
                              const std::vector<std::string>& choices, const std::string& meaning) {
  const auto found = Find(key);
  const Json value = found.value_or(Json(fallback));
  std::string list;
  for (const std::string& choice : choices) list += (list.empty() ? "" : " | ") + choice;
  const auto chosen = std::find(choices.begin(), choices.end(), value);
  if (chosen == choices.end()) Fail(key, value, "one of " + list);
  Note(key, meaning + " (" + list + ")", value, !found);
  return chosen - choices.begin();
}

void Recipe::CheckAllRead() const {
  std::vector<std::string> keys;
  ListKeys(value_, "", keys);
  std::string unknown;
  for (const std::string& key : keys) {
    const auto same = [&](const Setting& setting) { return setting.key == key; };
    if (std::any_of(settings_.begin(), settings_.end(), same)) continue;
    const auto nearest = std::min_element(settings_.begin(), settings_.end(),
                                          [&](const Setting& a, const Setting& b) {
                                            return Distance(a.key, key) < Distance(b.key, key);
                                          });
    unknown += "\n  " + key;
    if (nearest != settings_.end()) unknown += " (did you mean " + nearest->key + "?)";
  }
  if (unknown.empty()) return;
  throw std::invalid_argument("the recipe has settings that this kind of training does not know:" +
                              unknown + "\n`llava-train describe` lists all");
}

Json Recipe::Resolved() const {
  Json resolved = Json::object();
  for (const Setting& setting : settings_) resolved[PlaceOf(setting.key)] = setting.value;
  return resolved;
}

Json Recipe::Defaults() const {
  Json defaults = Json::object();
  for (const Setting& setting : settings_) {
    if (setting.is_default) defaults[PlaceOf(setting.key)] = setting.value;
  }
  return defaults;
}

}  // namespace llava
