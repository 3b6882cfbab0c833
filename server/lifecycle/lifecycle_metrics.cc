#include "server/lifecycle/lifecycle_metrics.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

constexpr char kStateName[] = "llava_model_version_state";
constexpr char kServingName[] = "llava_model_versions_serving";
constexpr char kLoadsName[] = "llava_model_loads_total";

// 10 ms ... 20 minutes: from the embedded default to large models on slow disks.
const std::vector<double>& LoadBuckets() {
  static const std::vector<double> buckets = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,   2.5, 5,
                                              10,   20,    40,   60,  120,  300, 600, 1200};
  return buckets;
}

bool OnItsWay(v1::ModelState state) {
  return state == v1::MODEL_STATE_LOADING || state == v1::MODEL_STATE_WARMING;
}

MetricLabels StateLabels(const VersionId& id, v1::ModelState state) {
  return {{"model", id.name}, {"version", absl::StrCat(id.version)}, {"state", ToString(state)}};
}

}  // namespace

std::string ToString(v1::ModelState state) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::ModelState_Name(state), "MODEL_STATE_"));
}

void ShowModelInfo(Metrics& metrics, const v1::ModelInfo& info, bool shown) {
  const bool tower = info.kind() == v1::MODEL_KIND_TOWER;
  const char* const name = tower ? "llava_vision_model_info" : "llava_llm_model_info";
  const MetricLabels labels = {{"name", info.model().name()},
                               {"version", absl::StrCat(info.model().version())},
                               {"digest", absl::BytesToHexString(info.model().digest())},
                               {"numerics", info.numerics()}};
  if (!shown) return metrics.RemoveGauge(name, labels);
  const char* const help = tower ? "The towers that are served" : "Language models that are loaded";
  metrics.Gauge(name, help, labels).Set(1);
}

LifecycleMetrics::LifecycleMetrics(Metrics& metrics, uint64_t memory_budget)
    : load_seconds(metrics.Histogram("llava_model_load_seconds",
                                     "Reading, checking, warming up and testing a version that "
                                     "could be loaded",
                                     {}, LoadBuckets())),
      drain_seconds(metrics.Histogram("llava_model_drain_seconds",
                                      "From the last request taken until a version was freed", {},
                                      LoadBuckets())),
      estimated_bytes(metrics.Gauge("llava_model_memory_estimated_bytes",
                                    "Memory of all versions loaded, loading or not freed yet, as "
                                    "estimated before loading")),
      metrics_(metrics),
      without_folder_(metrics.Gauge("llava_model_versions_without_folder",
                                    "Versions that are served although their folder is gone from "
                                    "the repository")) {
  metrics
      .Gauge("llava_model_memory_budget_bytes",
             "Memory that all versions may take together (--memory-budget); without the flag a "
             "guess, which only chooses the swap mode")
      .Set(static_cast<double>(memory_budget));
}

void LifecycleMetrics::Count(const Lifecycle::Transition& transition, const absl::Status& error) {
  const auto& [id, from, to, message] = transition;
  if (from != v1::MODEL_STATE_UNSPECIFIED) metrics_.RemoveGauge(kStateName, StateLabels(id, from));
  if (to != v1::MODEL_STATE_UNSPECIFIED) {
    metrics_.Gauge(kStateName, "What a version is doing: 1 for its state", StateLabels(id, to))
        .Set(1);
  }
  std::string result;
  if (to == v1::MODEL_STATE_FAILED) {
    result = error.ok() ? "unknown"  // forgotten since
                        : absl::AsciiStrToLower(absl::StatusCodeToString(error.code()));
  } else if (OnItsWay(from) && to == v1::MODEL_STATE_READY) {
    result = "ok";
  } else if (OnItsWay(from) && !OnItsWay(to)) {
    result = "cancelled";
  }
  if (result.empty()) return;
  metrics_
      .Counter(kLoadsName, "Versions loaded (ok), given up, or failed, by reason",
               {{"model", id.name}, {"result", result}})
      .Increment();
}

void LifecycleMetrics::ShowServing(const std::map<std::string, int>& models) {
  for (const auto& [model, versions] : models) {
    metrics_.Gauge(kServingName, "Versions that take requests", {{"model", model}}).Set(versions);
    shown_.insert(model);
  }
  std::erase_if(shown_, [&](const std::string& model) {
    if (models.contains(model)) return false;
    metrics_.RemoveGauge(kServingName, {{"model", model}});
    return true;
  });
}

void LifecycleMetrics::ShowWithoutFolder(std::set<VersionId> versions) {
  for (const VersionId& id : versions) {
    if (folders_missed_.contains(id)) continue;
    LogWarning("the folder of a version that is served is gone; a new process could not load it",
               {{"model", id.name}, {"version", absl::StrCat(id.version)}});
  }
  folders_missed_ = std::move(versions);
  without_folder_.Set(static_cast<double>(folders_missed_.size()));
}

prometheus::Histogram& LifecycleMetrics::SwapSeconds(SwapMode mode) {
  return metrics_.Histogram("llava_model_swap_seconds",
                            "From the decision to replace a version until requests go to the new "
                            "one on all workers",
                            {{"mode", ToString(mode)}}, LoadBuckets());
}

}  // namespace llava
