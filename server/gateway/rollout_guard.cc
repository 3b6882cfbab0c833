#include "server/gateway/rollout_guard.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "server/runtime/logging.h"
#include "server/runtime/request_id.h"

namespace llava {
namespace {

using google::protobuf::util::TimeUtil;

constexpr std::chrono::seconds kStatusTimeout{3}, kLabelTimeout{5};

v1::RolloutVerdict ToWire(RolloutVerdict verdict) {
  switch (verdict) {
    case RolloutVerdict::kUndecided:
      break;
    case RolloutVerdict::kAsGood:
      return v1::ROLLOUT_VERDICT_AS_GOOD;
    case RolloutVerdict::kWorse:
      return v1::ROLLOUT_VERDICT_WORSE;
  }
  return v1::ROLLOUT_VERDICT_UNDECIDED;
}

google::protobuf::Duration ToDuration(double seconds) {
  return TimeUtil::NanosecondsToDuration(static_cast<int64_t>(seconds * 1e9));
}

v1::RolloutEvidence ToWire(const VersionEvidence& evidence) {
  v1::RolloutEvidence wire;
  wire.set_turns(evidence.turns);
  wire.set_failed_turns(evidence.failed);
  wire.set_given_up_turns(evidence.given_up.size());
  if (!evidence.first_token.empty()) {
    *wire.mutable_first_token_median() = ToDuration(Quantile(evidence.first_token, 0.5));
    *wire.mutable_first_token_p90() = ToDuration(Quantile(evidence.first_token, 0.9));
  }
  if (!evidence.between_tokens.empty()) {
    *wire.mutable_between_tokens_median() = ToDuration(Quantile(evidence.between_tokens, 0.5));
    *wire.mutable_between_tokens_p90() = ToDuration(Quantile(evidence.between_tokens, 0.9));
    *wire.mutable_largest_gap() = ToDuration(evidence.largest_gap);
  }
  wire.set_self_test_drift(evidence.drift);
  wire.set_nan_outputs(evidence.nan_outputs);
  return wire;
}

// Waits for the one result of a call with a callback.
template <typename Result, typename Start>
Result Await(Start start) {
  auto promise = std::make_shared<std::promise<Result>>();
  auto future = promise->get_future();
  start([promise](Result result) { promise->set_value(std::move(result)); });
  return future.get();
}

// What a verdict sets before it takes the label "canary" away.
std::string FirstLabel(const v1::ModelVersion& canary, RolloutVerdict verdict) {
  return verdict == RolloutVerdict::kAsGood ? kStableLabel : RejectedLabel(canary.version());
}

// What a count has grown by that may have begun anew.
uint64_t Since(uint64_t before, uint64_t now) { return now >= before ? now - before : now; }

ModelAdmin::Call CallWithin(std::chrono::seconds timeout) {
  return {std::chrono::system_clock::now() + timeout, RandomId()};
}

}  // namespace

void RolloutOptions::Declare(Settings& settings) {
  settings.AddChoice("rollout", &mode,
                     "Canaries against stable versions: off, observe (verdicts in log, metrics and "
                     "GetRollout) or auto (labels follow the verdict)",
                     {"off", "observe", "auto"});
  settings.Add("rollout-window", &window, "How far back turns count for a verdict");
  settings.Add("rollout-min-turns", &limits.min_turns,
               "Turns of a canary before it is found as good", 1, 4096);
  settings.Add("rollout-min-time", &limits.min_time,
               "Time that a canary is watched before it is found as good");
  settings.Add("rollout-error-tolerance", &limits.error_tolerance,
               "Share of failed turns that a canary may have beyond the stable version's", 0, 1);
  settings.Add("rollout-latency-ratio", &limits.latency_ratio,
               "How much slower a canary may be, to the first token and between tokens", 1, 1000);
  settings.Add("rollout-max-drift", &limits.max_drift, "How far off its self-test a canary may be",
               0, 1e9);
}

absl::Status RolloutOptions::Check() const {
  if (window.count() > 0) return absl::OkStatus();
  return absl::InvalidArgumentError("--rollout-window must be above 0");
}

void RolloutGuard::Start() {
  if (options_.mode != "off") thread_ = std::thread([this] { Loop(); });
}

void RolloutGuard::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

bool RolloutGuard::stopping() const {
  MutexLock lock(mutex_);
  return stopping_;
}

void RolloutGuard::Loop() {
  while (!stopping()) {
    Look();
    MutexLock lock(mutex_);
    const auto end = CondVar::Clock::now() + options_.period;
    while (!stopping_ && changed_.WaitUntil(mutex_, end)) {
    }
  }
}

std::vector<v1::Rollout> RolloutGuard::Report(const std::string& name) const {
  std::vector<v1::Rollout> reports;
  MutexLock lock(mutex_);
  for (const auto& [model, watch] : watches_) {
    if (!name.empty() && name != model) continue;
    reports.push_back(watch.report);
    reports.back().set_canary_share(router_.canary_share(model));
  }
  return reports;
}

void RolloutGuard::Look() {
  const auto models = router_.LanguageModels();
  if (!models.ok()) return;  // nothing is known of anybody
  std::map<std::string, std::vector<v1::ModelInfo>> versions;
  for (const v1::ModelInfo& each : *models) versions[each.model().name()].push_back(each);
  std::vector<std::string> pending;
  {
    MutexLock lock(mutex_);
    for (auto& [name, watch] : watches_) {
      if (watch.pending && IsOverruled(watch, versions[name])) {
        LogWarning("rollout: labels were changed, the verdict is dropped",
                   {{"model", name}, {"canary", absl::StrCat(watch.report.canary().version())}});
        watch.pending.reset();
        metrics_.SetRolloutPending(name, false);
        watch.report.set_apply_error(absl::StrCat("dropped, as labels were changed meanwhile; ",
                                                  watch.report.apply_error()));
        watch.active = false;  // a canary that is still one is judged anew
        metrics_.SetRolloutActive(name, false);
      }
      if (watch.pending) pending.push_back(name);
      const bool labelled =
          std::any_of(versions[name].begin(), versions[name].end(), [&](const v1::ModelInfo& each) {
            return HasLabel(each, kCanaryLabel) && !IsRejected(each) &&
                   IdOf(each.model()) == IdOf(watch.report.canary());
          });
      if (labelled || watch.pending || !watch.active) continue;
      watch.active = false;
      metrics_.SetRolloutActive(name, false);
    }
  }
  for (const std::string& name : pending) CarryOut(name);
  for (const auto& [name, all] : versions) {
    if (all.empty()) continue;
    metrics_.ShowRollouts(name);
    const auto canary = Eligible(all, {.name = name, .label = kCanaryLabel}, 0);
    const auto usual = Eligible(all, {.name = name}, 0);
    if (!canary.ok() || !usual.ok() || IsRejected(canary->front())) continue;
    if (IdOf(canary->front().model()) == IdOf(usual->front().model())) continue;
    if (std::find(pending.begin(), pending.end(), name) != pending.end()) continue;
    LookAt(canary->front(), usual->front());
    if (stopping()) return;
  }
}

bool RolloutGuard::IsOverruled(Watch& watch, const std::vector<v1::ModelInfo>& versions) {
  const v1::ModelVersion& canary = watch.report.canary();
  bool is_canary = false, labelled = false;
  for (const v1::ModelInfo& each : versions) {
    if (IdOf(each.model()) != IdOf(canary)) continue;
    is_canary |= HasLabel(each, kCanaryLabel);
    labelled |= HasLabel(each, FirstLabel(canary, *watch.pending));
  }
  const bool taken_back = std::exchange(watch.labelled, labelled || watch.labelled) && !labelled;
  return taken_back || (!is_canary && !labelled);
}

void RolloutGuard::LookAt(const v1::ModelInfo& canary_model, const v1::ModelInfo& stable_model) {
  const std::string& name = canary_model.model().name();
  const auto now = Clock::now();
  Watch watch;
  {
    MutexLock lock(mutex_);
    const auto found = watches_.find(name);
    if (found == watches_.end() || !found->second.active ||
        IdOf(found->second.report.canary()) != IdOf(canary_model.model()) ||
        IdOf(found->second.report.stable()) != IdOf(stable_model.model())) {
      watch.since = now;
      watch.report.set_name(name);
      *watch.report.mutable_canary() = canary_model.model();
      *watch.report.mutable_stable() = stable_model.model();
      *watch.report.mutable_since() = TimeUtil::GetCurrentTime();
      watch.canary.turns_before = samples_.Count(canary_model.model());
      watch.stable.turns_before = samples_.Count(stable_model.model());
      watches_[name] = watch;
    } else {
      watch = found->second;
      if (watch.report.applied()) return;  // the services have not read their labels yet
    }
  }
  const auto since = std::max(watch.since, now - options_.window);
  VersionEvidence canary = samples_.Collect(canary_model.model(), since);
  VersionEvidence stable = samples_.Collect(stable_model.model(), since);
  canary.turns_in_all = Since(watch.canary.turns_before, samples_.Count(canary_model.model()));
  stable.turns_in_all = Since(watch.stable.turns_before, samples_.Count(stable_model.model()));
  AskServices(name, watch, canary, stable);
  const RolloutDecision decision = DecideRollout(
      canary, stable, std::chrono::duration_cast<std::chrono::milliseconds>(now - watch.since),
      options_.limits);
  const v1::RolloutVerdict verdict = ToWire(decision.verdict);
  const bool is_new = watch.report.verdict() != verdict;
  v1::Rollout& report = watch.report;
  report.set_verdict(verdict);
  report.set_reason(decision.reason);
  *report.mutable_canary_evidence() = ToWire(canary);
  *report.mutable_stable_evidence() = ToWire(stable);
  if (is_new) *report.mutable_decided() = TimeUtil::GetCurrentTime();
  const bool act = options_.mode == "auto" && decision.verdict != RolloutVerdict::kUndecided;
  if (act) {
    watch.pending = decision.verdict;
    watch.labelled = false;
  }
  if (is_new) {
    LogInfo("rollout: " + std::string(decision.verdict == RolloutVerdict::kWorse    ? "worse"
                                      : decision.verdict == RolloutVerdict::kAsGood ? "as good"
                                                                                    : "undecided"),
            {{"model", name},
             {"canary", absl::StrCat(report.canary().version())},
             {"stable", absl::StrCat(report.stable().version())},
             {"share", absl::StrCat(router_.canary_share(name))},
             {"reason", decision.reason},
             {"canary_evidence", report.canary_evidence().ShortDebugString()},
             {"stable_evidence", report.stable_evidence().ShortDebugString()}});
  }
  metrics_.SetRolloutActive(name, true, router_.canary_share(name));
  metrics_.SetRollout(name, "canary", canary);
  metrics_.SetRollout(name, "stable", stable);
  metrics_.SetRolloutVerdict(name, decision.verdict);
  {
    MutexLock lock(mutex_);
    watches_[name] = std::move(watch);
  }
  if (act) CarryOut(name);
}

void RolloutGuard::AskServices(const std::string& name, Watch& watch, VersionEvidence& canary,
                               VersionEvidence& stable) {
  v1::GetModelStatusRequest request;
  request.mutable_model()->set_name(name);
  const auto status = Await<absl::StatusOr<v1::GetModelStatusResponse>>(
      [&](auto done) { admin_.GetStatus(request, CallWithin(kStatusTimeout), std::move(done)); });
  struct Role {
    const v1::ModelVersion& version;
    VersionEvidence& evidence;
    Counts& counts;
  };
  const Role roles[] = {{watch.report.canary(), canary, watch.canary},
                        {watch.report.stable(), stable, watch.stable}};
  for (const auto& [version, evidence, counts] : roles) evidence.nan_outputs = counts.nan_outputs;
  if (!status.ok()) return;  // turns tell as well
  std::set<std::string> heard;
  for (const v1::ModelVersionStatus& each : status->versions()) {
    heard.insert(each.process());
    for (const auto& [version, evidence, counts] : roles) {
      if (IdOf(each.model()) != IdOf(version)) continue;
      // Not a number is the worst of all, and stays.
      if (!std::isnan(evidence.drift) && !(each.self_test_drift() <= evidence.drift)) {
        evidence.drift = each.self_test_drift();
      }
      // Who comes later has counted since he loaded it, not since long.
      const bool first = !watch.asked || watch.silent.contains(each.process());
      const auto [told, is_new] =
          counts.told.try_emplace(each.process(), first ? each.nan_outputs() : 0);
      counts.nan_outputs += Since(told->second, each.nan_outputs());
      told->second = each.nan_outputs();
      evidence.nan_outputs = counts.nan_outputs;
    }
  }
  for (const std::string& process : heard) watch.silent.erase(process);
  if (std::exchange(watch.asked, true)) return;
  for (const auto& [process, why] : status->silent_processes()) watch.silent.insert(process);
}

absl::Status RolloutGuard::SetLabel(const std::string& name, const std::string& label,
                                    uint64_t version) {
  v1::SetLabelRequest request;
  request.set_name(name);
  request.set_label(label);
  request.set_version(version);
  return Await<absl::StatusOr<v1::SetLabelResponse>>([&](auto done) {
           admin_.SetLabel(request, CallWithin(kLabelTimeout), std::move(done));
         })
      .status();
}

absl::Status RolloutGuard::Apply(const v1::ModelVersion& canary, RolloutVerdict verdict) {
  // What protects users comes first: sessions of a canary that is promoted never leave it.
  absl::Status status = SetLabel(canary.name(), FirstLabel(canary, verdict), canary.version());
  if (status.ok()) status = SetLabel(canary.name(), kCanaryLabel, 0);
  return status;
}

void RolloutGuard::CarryOut(const std::string& name) {
  v1::ModelVersion canary;
  RolloutVerdict verdict = RolloutVerdict::kUndecided;
  {
    MutexLock lock(mutex_);
    const Watch& watch = watches_[name];
    if (!watch.pending || stopping_) return;
    canary = watch.report.canary();
    verdict = *watch.pending;
  }
  const absl::Status status = Apply(canary, verdict);
  const bool promoted = verdict == RolloutVerdict::kAsGood;
  const LogFields fields = {{"model", name},
                            {"version", absl::StrCat(canary.version())},
                            {"error", std::string(status.message())}};
  if (status.ok()) {
    LogInfo(promoted ? "rollout: canary promoted" : "rollout: canary rolled back", fields);
    metrics_.CountRollout(name, promoted);
  }
  metrics_.SetRolloutPending(name, !status.ok());
  MutexLock lock(mutex_);
  Watch& watch = watches_[name];
  // It is tried again and again.
  if (!status.ok() && watch.report.apply_error() != status.message()) {
    LogWarning("rollout: verdict not carried out everywhere", fields);
  }
  watch.report.set_applied(status.ok());
  watch.report.set_apply_error(std::string(status.message()));
  if (status.ok()) watch.pending.reset();
}

}  // namespace llava
