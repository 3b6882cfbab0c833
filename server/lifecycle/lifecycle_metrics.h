#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/models.pb.h"
#include "server/lifecycle/lifecycle.h"
#include "server/runtime/metrics.h"

namespace llava {

// "available", "loading", ...
std::string ToString(v1::ModelState state);

// Shows a version that is loaded (always 1), or takes it away again.
void ShowModelInfo(Metrics& metrics, const v1::ModelInfo& info, bool shown);

// What the manager counts. Thread-safe.
class LifecycleMetrics {
 public:
  LifecycleMetrics(Metrics& metrics, uint64_t memory_budget);

  // A version went from a state to another; UNSPECIFIED: it came or is gone. `error`: of FAILED.
  void Count(const Lifecycle::Transition& transition, const absl::Status& error);
  // How many versions of each model take requests; other models are shown no more. One thread at a
  // time.
  void ShowServing(const std::map<std::string, int>& models);
  // Versions that are served although their folder is gone; a new one is logged. One thread at a
  // time.
  void ShowWithoutFolder(std::set<VersionId> versions);

  prometheus::Histogram& load_seconds;
  prometheus::Histogram& drain_seconds;
  prometheus::Gauge& estimated_bytes;
  prometheus::Histogram& SwapSeconds(SwapMode mode);

 private:
  Metrics& metrics_;
  prometheus::Gauge& without_folder_;
  std::set<std::string> shown_;         // by ShowServing
  std::set<VersionId> folders_missed_;  // by ShowWithoutFolder
};

}  // namespace llava
