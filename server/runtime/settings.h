#pragma once

// Settings of a process: flags, environment, a YAML or JSON file, defaults; in that order.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace llava {

// Declares each setting once; flag, environment twin and file key follow from its name:
// --drain-timeout, LLAVA_GATEWAY_DRAIN_TIMEOUT and `drain-timeout:` for the program llava-gateway.
// --help, --version, --config FILE, --print-config and --check-config are always there.
//
// One thread, at start. The targets must outlive Parse.
class Settings {
 public:
  Settings(std::string program, std::string description);
  ~Settings();

  // The following settings appear under this title in --help.
  void Group(std::string title);

  // The value at `target` is the default. Sizes take 512, 64K, 20M, 2G; durations 250ms, 30s, 5m,
  // 2h.
  void Add(const std::string& name, std::string* target, const std::string& help);
  void Add(const std::string& name, bool* target, const std::string& help);
  void Add(const std::string& name, double* target, const std::string& help, double low,
           double high);
  void Add(const std::string& name, int* target, const std::string& help, int low, int high);
  void Add(const std::string& name, uint64_t* target, const std::string& help, uint64_t low,
           uint64_t high);
  void Add(const std::string& name, std::chrono::milliseconds* target, const std::string& help);
  // Short waits: also takes 500us.
  void Add(const std::string& name, std::chrono::microseconds* target, const std::string& help);
  void AddBytes(const std::string& name, uint64_t* target, const std::string& help);
  void AddChoice(const std::string& name, std::string* target, const std::string& help,
                 std::vector<std::string> choices);

  // Runs after all values are set; its message is printed as the one error line.
  void Check(std::function<absl::Status()> check);

  // Reads everything. An exit code means: end now (0 after --help, --version, --print-config and a
  // good --check-config; 2 after one clear line on stderr about an unknown flag or bad value).
  std::optional<int> Parse(int argc, const char* const* argv);

 private:
  struct Entry;
  void AddEntry(const std::string& name, const std::string& help, std::string fallback,
                std::string kind, std::function<absl::Status(const std::string&)> set);
  absl::Status Resolve();
  absl::Status RunChecks() const;
  absl::Status ReadFile();

  std::string program_, description_, group_, config_file_;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::vector<std::function<absl::Status()>> checks_;
};

// One clear line on stderr: "llava-gateway: message".
void PrintError(const std::string& program, const std::string& message);

}  // namespace llava
