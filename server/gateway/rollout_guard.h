#pragma once

// Watches canaries and ends their rollouts.

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "llava/v1/models.pb.h"
#include "llava/v1/rollout.pb.h"
#include "server/gateway/gateway_metrics.h"
#include "server/gateway/model_admin.h"
#include "server/gateway/model_router.h"
#include "server/gateway/rollout_decision.h"
#include "server/gateway/rollout_evidence.h"
#include "server/runtime/mutex.h"
#include "server/runtime/settings.h"

namespace llava {

struct RolloutOptions {
  std::string mode = "observe";  // off, observe (verdicts only), auto (labels follow)
  RolloutLimits limits;
  std::chrono::milliseconds window{600'000};  // how far back turns count
  std::chrono::milliseconds period{1'000};    // between two looks

  void Declare(Settings& settings);
  absl::Status Check() const;
};

// For each language model with a version labelled "canary": compares it with the version that
// answers otherwise, by the turns of this gateway since the rollout began and by what the services
// say of NaN and self-test. With `auto` a canary that is as good becomes "stable"; one that is
// worse gets the label "rejected-<version>", so that nobody gets it who does not ask for it. Both
// lose the label "canary". A verdict that could not be carried out everywhere is carried out again,
// until somebody else sets these labels otherwise.
// Thread-safe.
class RolloutGuard {
 public:
  RolloutGuard(const RolloutOptions& options, ModelRouter& router, ModelAdmin& admin,
               const TurnSamples& samples, GatewayMetrics& metrics)
      : options_(options), router_(router), admin_(admin), samples_(samples), metrics_(metrics) {}
  ~RolloutGuard() { Stop(); }
  RolloutGuard(const RolloutGuard&) = delete;
  RolloutGuard& operator=(const RolloutGuard&) = delete;

  // A thread of its own looks every period, unless the mode is off.
  void Start();
  void Stop();

  // Rollouts under way and the last one of each model; all models if `name` is empty.
  std::vector<v1::Rollout> Report(const std::string& name) const;

 private:
  using Clock = std::chrono::steady_clock;
  // Of a version since the watch began.
  struct Counts {
    uint64_t turns_before = 0;  // of TurnSamples; what that has forgotten begins anew
    uint64_t nan_outputs = 0;
    std::map<std::string, uint64_t> told;  // nan_outputs by process, since it loaded the version
  };
  struct Watch {
    v1::Rollout report;
    Clock::time_point since;
    bool active = true;
    // Decided, and not carried out yet.
    std::optional<RolloutVerdict> pending;
    bool labelled = false;  // the first label of that verdict was seen on the canary
    Counts canary, stable;
    // Processes that did not say at the first look what they had counted before it.
    std::set<std::string> silent;
    bool asked = false;  // there was a first look
  };

  void Loop();
  void Look();
  // Has somebody set other labels than a verdict that is pending? `versions`: of its model, as the
  // services list them.
  static bool IsOverruled(Watch& watch, const std::vector<v1::ModelInfo>& versions);
  void LookAt(const v1::ModelInfo& canary, const v1::ModelInfo& stable);
  // Drift and NaN of both versions, from all processes.
  void AskServices(const std::string& name, Watch& watch, VersionEvidence& canary,
                   VersionEvidence& stable);
  absl::Status Apply(const v1::ModelVersion& canary, RolloutVerdict verdict);
  absl::Status SetLabel(const std::string& name, const std::string& label, uint64_t version);
  void CarryOut(const std::string& name);
  bool stopping() const;

  const RolloutOptions& options_;
  ModelRouter& router_;
  ModelAdmin& admin_;
  const TurnSamples& samples_;
  GatewayMetrics& metrics_;

  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  std::map<std::string, Watch> watches_ LLAVA_GUARDED_BY(mutex_);  // by model
  std::thread thread_;
};

}  // namespace llava
