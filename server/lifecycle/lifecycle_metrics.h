#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/models.pb.h"
#include "server/lifecycle/lifecycle.h"
#include "server/runtime/metrics.h"

namespace llava {

// "available", "loading", ...
std::string ToString(v1::ModelState state);

// What the manager counts. Thread-safe.
class LifecycleMetrics {
 public:
  LifecycleMetrics(Metrics& metrics, uint64_t memory_budget);

  // A version went from a state to another; UNSPECIFIED: it came or is gone. `error`: of FAILED.
  void Count(const Lifecycle::Transition& transition, const absl::Status& error);
  void ShowServing(const std::string& model, int versions);

  prometheus::Histogram& load_seconds;
  prometheus::Histogram& drain_seconds;
  prometheus::Gauge& estimated_bytes;
  prometheus::Histogram& SwapSeconds(SwapMode mode);

 private:
  Metrics& metrics_;
};

}  // namespace llava
