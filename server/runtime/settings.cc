#include "server/runtime/settings.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <iostream>
#include <map>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "server/runtime/build_info.h"
#include "server/runtime/exit_code.h"

namespace llava {
namespace {

// A hundred years: more does not fit into a time in nanoseconds. An exabyte.
constexpr double kMostSeconds = 100.0 * 365 * 24 * 3600, kMostBytes = 1e18;

// "512", "1.5" style numbers with a unit out of `units` behind them, which 0 does not need.
absl::StatusOr<double> WithUnit(const std::string& text, const std::map<std::string, double>& units,
                                double most) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string unit(end, text.data() + text.size());
  if (error == std::errc() && number == 0 && unit.empty()) return 0.0;
  const auto found = units.find(unit);
  if (error != std::errc() || found == units.end() || !(number >= 0)) {
    std::vector<std::string> known;
    for (const auto& [name, factor] : units) {
      if (!name.empty()) known.push_back(name);
    }
    return absl::InvalidArgumentError(
        absl::StrCat("is not a number with a unit of: ", absl::StrJoin(known, " ")));
  }
  if (!(number * found->second <= most)) return absl::InvalidArgumentError("is too large");
  return number * found->second;
}

template <typename T>
absl::Status ParseNumber(const std::string& text, T low, T high, T* target) {
  T number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() ||
      !(number >= low && number <= high)) {
    return absl::InvalidArgumentError(absl::StrCat("is not a number from ", low, " to ", high));
  }
  *target = number;
  return absl::OkStatus();
}

std::string ShowMilliseconds(std::chrono::milliseconds value) {
  if (value.count() % 1000 != 0) return absl::StrCat(value.count(), "ms");
  return absl::StrCat(value.count() / 1000, "s");
}

// Other words for choices, which --help does not name.
std::string WithoutAlias(const std::string& word) { return word == "bf16" ? "bfloat16" : word; }

// deploy/README.md tells what to do. Those about models are of programs with a --device to load
// them onto.
std::string ExitCodes(bool loads_models) {
  std::string codes = absl::StrCat("Exit codes: 0 orderly end, 1 other fault, ", int{kExitUsage},
                                   " usage, ", int{kExitPortInUse}, " port in use");
  if (loads_models) {
    absl::StrAppend(&codes, ", ", int{kExitModelMissing}, " model missing or broken, ",
                    int{kExitDeviceMissing}, " device missing, ", int{kExitNoMemory},
                    " not enough memory, ", int{kExitDeviceLost}, " device lost");
  }
  return codes + "; 128 + its number after a second signal.";
}

}  // namespace

struct Settings::Entry {
  std::string name, help, group, kind;
  std::function<absl::Status(const std::string&)> set;
  std::string value;               // as text
  std::string origin = "default";  // flag, environment, file, default
  CLI::Option* option = nullptr;
  std::string from_flag;
};

void PrintError(const std::string& program, const std::string& message) {
  std::cerr << program << ": " << message << std::endl;
}

Settings::Settings(std::string program, std::string description)
    : program_(std::move(program)), description_(std::move(description)) {
  Group("Configuration");
}

Settings::~Settings() = default;

void Settings::Group(std::string title) { group_ = std::move(title); }

void Settings::AddEntry(const std::string& name, const std::string& help, std::string fallback,
                        std::string kind, std::function<absl::Status(const std::string&)> set) {
  auto entry = std::make_unique<Entry>();
  entry->name = name;
  entry->help = help;
  entry->group = group_;
  entry->kind = std::move(kind);
  entry->set = std::move(set);
  entry->value = std::move(fallback);
  entries_.push_back(std::move(entry));
}

void Settings::Add(const std::string& name, std::string* target, const std::string& help) {
  AddEntry(name, help, *target, "TEXT", [target](const std::string& text) {
    *target = text;
    return absl::OkStatus();
  });
}

void Settings::Add(const std::string& name, bool* target, const std::string& help) {
  AddEntry(name, help, *target ? "true" : "false", "", [target](const std::string& text) {
    if (text != "true" && text != "false")
      return absl::InvalidArgumentError("is not true or false");
    *target = text == "true";
    return absl::OkStatus();
  });
}

void Settings::Add(const std::string& name, double* target, const std::string& help, double low,
                   double high) {
  AddEntry(name, help, absl::StrCat(*target), "NUMBER",
           [=](const std::string& text) { return ParseNumber(text, low, high, target); });
}

void Settings::Add(const std::string& name, int* target, const std::string& help, int low,
                   int high) {
  AddEntry(name, help, absl::StrCat(*target), "INTEGER",
           [=](const std::string& text) { return ParseNumber(text, low, high, target); });
}

void Settings::Add(const std::string& name, uint64_t* target, const std::string& help, uint64_t low,
                   uint64_t high) {
  AddEntry(name, help, absl::StrCat(*target), "INTEGER",
           [=](const std::string& text) { return ParseNumber(text, low, high, target); });
}

void Settings::Add(const std::string& name, std::chrono::milliseconds* target,
                   const std::string& help) {
  AddEntry(name, help, ShowMilliseconds(*target), "DURATION",
           [target](const std::string& text) -> absl::Status {
             const auto value =
                 WithUnit(text, {{"ms", 1.0}, {"s", 1000.0}, {"m", 60'000.0}, {"h", 3'600'000.0}},
                          1000.0 * kMostSeconds);
             if (!value.ok()) return value.status();
             *target = std::chrono::milliseconds(static_cast<int64_t>(*value));
             return absl::OkStatus();
           });
}

void Settings::Add(const std::string& name, std::chrono::microseconds* target,
                   const std::string& help) {
  const std::string fallback =
      target->count() % 1000 != 0
          ? absl::StrCat(target->count(), "us")
          : ShowMilliseconds(std::chrono::milliseconds(target->count() / 1000));
  AddEntry(name, help, fallback, "DURATION", [target](const std::string& text) -> absl::Status {
    const auto value = WithUnit(text, {{"us", 1.0}, {"ms", 1000.0}, {"s", 1'000'000.0}},
                                1'000'000.0 * kMostSeconds);
    if (!value.ok()) return value.status();
    *target = std::chrono::microseconds(static_cast<int64_t>(*value));
    return absl::OkStatus();
  });
}

void Settings::AddBytes(const std::string& name, uint64_t* target, const std::string& help) {
  std::string fallback = absl::StrCat(*target);
  for (const auto& [factor, unit] :
       {std::pair<uint64_t, const char*>{1u << 30, "G"}, {1u << 20, "M"}, {1u << 10, "K"}}) {
    if (*target != 0 && *target % factor == 0) {
      fallback = absl::StrCat(*target / factor, unit);
      break;
    }
  }
  AddEntry(name, help, fallback, "BYTES", [target](const std::string& text) -> absl::Status {
    const auto value = WithUnit(
        text, {{"", 1.0}, {"K", 1024.0}, {"M", 1048576.0}, {"G", 1073741824.0}}, kMostBytes);
    if (!value.ok()) return value.status();
    *target = static_cast<uint64_t>(*value);
    return absl::OkStatus();
  });
}

void Settings::AddChoice(const std::string& name, std::string* target, const std::string& help,
                         std::vector<std::string> choices) {
  const std::string all = absl::StrJoin(choices, "|");
  AddEntry(name, help, *target, all, [=](const std::string& word) {
    const std::string text = WithoutAlias(word);
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      return absl::InvalidArgumentError("is not one of " + all);
    }
    *target = text;
    return absl::OkStatus();
  });
}

void Settings::Check(std::function<absl::Status()> check) { checks_.push_back(std::move(check)); }

absl::Status Settings::ReadFile() {
  YAML::Node root;
  try {
    root = YAML::LoadFile(config_file_);
  } catch (const YAML::BadFile&) {
    return absl::NotFoundError(absl::StrCat("cannot read the config file ", config_file_));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(config_file_, ":", error.mark.line + 1, ": ", error.msg));
  }
  if (root.IsNull()) return absl::OkStatus();
  if (!root.IsMap()) {
    return absl::InvalidArgumentError(absl::StrCat(config_file_, ": is not a map of settings"));
  }
  for (const auto& item : root) {
    const std::string place = absl::StrCat(config_file_, ":", item.first.Mark().line + 1, ": ");
    const std::string key = absl::StrReplaceAll(item.first.Scalar(), {{"_", "-"}});
    const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const auto& e) { return e->name == key; });
    if (entry == entries_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, "unknown setting ", item.first.Scalar()));
    }
    if (!item.second.IsScalar()) {
      return absl::InvalidArgumentError(absl::StrCat(place, key, " is not a single value"));
    }
    if ((*entry)->origin == "default") {
      (*entry)->value = item.second.Scalar();
      (*entry)->origin = absl::StrCat("file ", config_file_);
    }
  }
  return absl::OkStatus();
}

absl::Status Settings::Resolve() {
  for (const auto& entry : entries_) {
    const std::string variable = absl::StrReplaceAll(
        absl::AsciiStrToUpper(absl::StrCat(program_, "_", entry->name)), {{"-", "_"}});
    if (entry->option->count() > 0) {
      entry->value = entry->from_flag;
      entry->origin = "flag";
    } else if (const char* text = std::getenv(variable.c_str())) {
      entry->value = text;
      entry->origin = "environment " + variable;
    }
  }
  if (!config_file_.empty()) {
    if (absl::Status status = ReadFile(); !status.ok()) return status;
  }
  for (const auto& entry : entries_) {
    if (absl::Status status = entry->set(entry->value); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--", entry->name, " (", entry->origin, "): \"", entry->value, "\" ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status Settings::RunChecks() const {
  for (const auto& check : checks_) {
    if (absl::Status status = check(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::optional<int> Settings::Parse(int argc, const char* const* argv) {
  CLI::App app(description_, program_);
  app.get_formatter()->column_width(34);
  app.set_version_flag("--version", BuildLine(program_));
  app.footer("Every setting has an environment twin (" +
             absl::StrReplaceAll(absl::AsciiStrToUpper(program_), {{"-", "_"}}) +
             "_NAME) and a key in the config file. Order: flag, environment, file, default.\n" +
             ExitCodes(std::any_of(entries_.begin(), entries_.end(),
                                   [](const auto& entry) { return entry->name == "device"; })));
  bool print_config = false, check_config = false;
  app.add_option("--config", config_file_, "YAML or JSON file of settings")
      ->type_name("FILE")
      ->envname(absl::StrReplaceAll(absl::AsciiStrToUpper(program_), {{"-", "_"}}) + "_CONFIG")
      ->group("Configuration");
  app.add_flag("--print-config", print_config, "Print all settings with their origin, then end")
      ->group("Configuration");
  app.add_flag("--check-config", check_config, "Check all settings, then end")
      ->group("Configuration");
  for (const auto& entry : entries_) {
    const std::string help = absl::StrCat(entry->help, " [", entry->value, "]");
    entry->option =
        entry->kind.empty()
            ? app.add_flag("--" + entry->name, entry->from_flag, help)
            : app.add_option("--" + entry->name, entry->from_flag, help)->type_name(entry->kind);
    entry->option->group(entry->group)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& call) {  // --help, --version
    return app.exit(call);
  } catch (const CLI::ParseError& error) {
    PrintError(program_, absl::StrCat(error.what(), " (see --help)"));
    return 2;
  }
  absl::Status status = Resolve();
  if (status.ok() && print_config) {  // also where they do not fit together
    for (const auto& entry : entries_) {
      std::cout << entry->name << ": " << YAML::Node(entry->value) << "  # " << entry->origin
                << "\n";
    }
  }
  if (status.ok()) status = RunChecks();
  if (!status.ok()) {
    PrintError(program_, std::string(status.message()));
    return 2;
  }
  if (print_config || check_config) return 0;
  return std::nullopt;
}

}  // namespace llava
