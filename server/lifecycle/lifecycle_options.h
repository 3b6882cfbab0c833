#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "server/lifecycle/model_manager.h"
#include "server/runtime/settings.h"

namespace llava {

// What llava-llm and llava-vision can be told about the versions they serve.
struct LifecycleOptions {
  std::string model;       // --model
  std::string repository;  // --repository
  std::string models;      // --models
  std::string version_policy = "auto";
  std::chrono::milliseconds poll_interval{5000};
  uint64_t memory_budget = 0;
  std::string swap_mode = "auto";
  int swap_prewarm = 16;  // sessions computed ahead for a new version; of language models only
  int load_threads = 1;
  uint64_t load_rate = 0;  // bytes per second
  std::chrono::milliseconds retry_delay{1000};
  std::chrono::milliseconds retry_max_delay{300'000};
  std::string admin_calls = "allow";

  // Declares the settings above (--swap-prewarm for language models only) with their checks.
  void Declare(Settings& settings, Manifest::Kind kind);

  // What the manager needs, after Settings::Parse. Looks at the disk once, to tell what --model is:
  //   <root>/<name>            a model of a repository, watched; NOT_FOUND if it has no version
  //   <root>/<name>/<version>  this version of it, and no other
  //   any other checkpoint     one version, its number 1 or that of its manifest
  // --repository ROOT is watched for its models of `kind` (or --models), and need not be there yet.
  absl::StatusOr<ModelManager::Options> Resolve(Manifest::Kind kind) const;

  bool admin() const { return admin_calls == "allow"; }
};

// After what time the loading of a worker hangs where a step of its device does after `step_limit`:
// reading weights may take much longer, and says nothing about the device. 0: never.
std::chrono::milliseconds LoadLimit(std::chrono::milliseconds step_limit);

// Nine tenths of the memory this process may use: of its control group, or the machine's. For
// --memory-budget 0: Resolve sets it as a soft budget; services on other devices set their own.
uint64_t HostMemoryBudget();

}  // namespace llava
