#include "server/lifecycle/lifecycle.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/seconds.h"

namespace llava {
namespace {

// Versions that are gone from the repository are remembered, so that people see what became of
// them; this many of a model.
constexpr size_t kGoneRemembered = 8;

constexpr char kFolderGone[] = "its folder is gone from the repository; served from memory";

}  // namespace

bool Resting(v1::ModelState state) {
  return state == v1::MODEL_STATE_AVAILABLE || state == v1::MODEL_STATE_UNLOADED ||
         state == v1::MODEL_STATE_FAILED;
}

Lifecycle::Lifecycle(Options options) : options_(std::move(options)), random_(options_.seed) {}

const Lifecycle::Version* Lifecycle::Find(const VersionId& id) const {
  const auto found = versions_.find(id);
  return found == versions_.end() ? nullptr : &found->second;
}

bool Lifecycle::Wants(const VersionId& id) const {
  const auto model = models_.find(id.name);
  if (model == models_.end()) return false;
  const auto& wanted = model->second.choice.wanted;
  return std::find(wanted.begin(), wanted.end(), id.version) != wanted.end();
}

void Lifecycle::Enter(const VersionId& id, v1::ModelState state, std::string message, Time now) {
  Version& version = versions_.at(id);
  // Its files have changed since, when a size was still needed for what was loaded.
  if (Resting(state) && version.sized_mark != version.mark) version.bytes.clear();
  if (version.state != state) {
    transitions_.push_back({id, version.state, state, message});
    version.state = state;
    version.since = now;
    ++changes_;
  }
  version.message = std::move(message);
}

void Lifecycle::Fail(const VersionId& id, const absl::Status& status, Time now) {
  Version& version = versions_.at(id);
  ++version.failures;
  ++version.attempts;
  version.error = status;
  version.workers = 0;
  version.refused = false;
  version.waits_for_change = options_.retry_delay <= Duration::zero();
  std::string message(status.message());
  if (version.costly) {
    version.waits_for_change = true;
    absl::StrAppend(&message, " (not tried again until its files change or LoadModel asks: ",
                    "another version would make way each time)");
  }
  const int doublings = std::min(version.failures - 1, 30);
  const double delay =
      std::min(Seconds(options_.retry_delay) * static_cast<double>(uint64_t{1} << doublings),
               Seconds(options_.retry_max_delay));
  const double jitter = std::uniform_real_distribution<double>(0.8, 1.2)(random_);
  version.retry_at =
      now + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(delay * jitter));
  if (version.loaded_mark != version.mark && !version.loaded_mark.empty()) {
    // Somebody repaired it meanwhile.
    version.failures = 0;
    version.waits_for_change = false;
    version.retry_at = now;
  }
  version.loaded_mark.clear();
  version.costly = false;
  Enter(id, v1::MODEL_STATE_FAILED, std::move(message), now);
  ++changes_;
  if (!version.present) Prune(id.name);
}

void Lifecycle::Route(const VersionId& id, Time now) {
  Version& version = versions_.at(id);
  steps_.push_back({Step::Kind::kRoute, id});
  Enter(id, v1::MODEL_STATE_READY, version.present ? "" : kFolderGone, now);
}

void Lifecycle::Unroute(const VersionId& id, std::string why, Time now) {
  steps_.push_back({Step::Kind::kUnroute, id});
  Enter(id, v1::MODEL_STATE_DRAINING, std::move(why), now);
}

void Lifecycle::Stopped(const VersionId& id, Time now) {
  Version& version = versions_.at(id);
  version.workers = 0;
  version.costly = false;
  version.ForgetOldFailures();
  Enter(id, v1::MODEL_STATE_UNLOADED, std::exchange(version.why_stopped, ""), now);
  if (!version.present) Prune(id.name);
}

void Lifecycle::PutBack(const VersionId& id, Time now) {
  versions_.at(id).costly = false;
  versions_.at(id).ForgetOldFailures();
  if (versions_.at(id).present) return Enter(id, v1::MODEL_STATE_AVAILABLE, "", now);
  Enter(id, v1::MODEL_STATE_UNLOADED, "its folder was deleted before it was loaded", now);
}

void Lifecycle::BeginLoad(const VersionId& id, int workers, uint64_t predecessor) {
  Version& version = versions_.at(id);
  version.job = Version::Job::kLoad;
  version.workers = workers;
  version.loaded_mark = version.mark;
  steps_.push_back({Step::Kind::kLoad, id, workers, predecessor});
  ++changes_;
}

void Lifecycle::BeginWorkers(const VersionId& id, int workers) {
  Version& version = versions_.at(id);
  version.job = Version::Job::kSetWorkers;
  version.workers_wanted = workers;
  steps_.push_back({Step::Kind::kSetWorkers, id, workers});
  ++changes_;
}

void Lifecycle::Erase(const VersionId& id) {
  const auto found = versions_.find(id);
  transitions_.push_back({id, found->second.state, v1::MODEL_STATE_UNSPECIFIED, ""});
  versions_.erase(found);
}

void Lifecycle::Prune(const std::string& name) {
  std::vector<VersionId> gone;  // ascending
  for (auto each = versions_.lower_bound({name, 0});
       each != versions_.end() && each->first.name == name; ++each) {
    const Version& version = each->second;
    if (!version.present && Resting(version.state) && version.job == Version::Job::kNone &&
        !InExchange(models_.at(name), each->first.version)) {
      gone.push_back(each->first);
    }
  }
  for (size_t i = 0; i + kGoneRemembered < gone.size(); ++i) Erase(gone[i]);
}

void Lifecycle::SetRepository(const RepositorySnapshot& snapshot, Time now) {
  looked_ = true;
  for (auto& [name, model] : models_) {
    if (!snapshot.contains(name)) model.seen = {};
  }
  for (const auto& [name, seen] : snapshot) models_[name].seen = seen;

  for (auto& [name, model] : models_) {
    for (const auto& [number, mark] : model.seen.versions) {
      const VersionId id{name, number};
      const auto [entry, created] = versions_.try_emplace(id);
      Version& version = entry->second;
      if (created) {
        version.since = now;
        version.mark = mark;
        transitions_.push_back({id, v1::MODEL_STATE_UNSPECIFIED, version.state, ""});
        continue;
      }
      if (!version.present && version.state == v1::MODEL_STATE_READY) version.message.clear();
      version.present = true;
      if (version.mark == mark) continue;
      version.mark = mark;
      if (!Resting(version.state)) continue;
      if (version.job == Version::Job::kNone) version.bytes.clear();
      version.failures = 0;
      version.waits_for_change = false;
      if (version.state == v1::MODEL_STATE_FAILED) {
        Enter(id, v1::MODEL_STATE_AVAILABLE, "its files have changed", now);
      }
    }
    std::vector<VersionId> never_loaded;
    for (auto each = versions_.lower_bound({name, 0});
         each != versions_.end() && each->first.name == name; ++each) {
      Version& version = each->second;
      if (model.seen.versions.contains(each->first.version)) continue;
      version.present = false;
      if (version.state == v1::MODEL_STATE_READY) version.message = kFolderGone;
      if (version.state == v1::MODEL_STATE_AVAILABLE && version.job == Version::Job::kNone &&
          !InExchange(model, each->first.version)) {
        never_loaded.push_back(each->first);
      }
    }
    for (const VersionId& id : never_loaded) Erase(id);
    Prune(name);
  }
}

void Lifecycle::WantLoaded(const VersionId& id, Time now) {
  Model& model = models_.at(id.name);
  Choose(id.name, model);  // wishes of before the last change end now, not this one
  VersionWishes& wishes = model.wishes;
  wishes.load.insert(id.version);
  wishes.unload.erase(id.version);
  Version& version = versions_.at(id);
  version.failures = 0;
  version.waits_for_change = false;
  version.failed_in_load = false;
  version.retry_at = now;
}

void Lifecycle::WantUnloaded(const VersionId& id, Time now) {
  Model& model = models_.at(id.name);
  Choose(id.name, model);
  model.wishes.unload.insert(id.version);
  model.wishes.load.erase(id.version);
  model.restore.erase(id.version);
  const Version& version = versions_.at(id);
  if (Resting(version.state) && version.job == Version::Job::kNone) {
    Enter(id, v1::MODEL_STATE_UNLOADED, "unloaded by request", now);
  }
}

void Lifecycle::Estimated(const VersionId& id, const absl::StatusOr<Size>& size, Time now) {
  Version& version = versions_.at(id);
  version.job = Version::Job::kNone;
  ++changes_;
  if (!version.present) {
    if (version.state == v1::MODEL_STATE_AVAILABLE) Erase(id);
    return;
  }
  if (size.ok()) {
    if (version.loaded_mark != version.mark) return;
    version.sized_mark = version.mark;
    version.bytes = size->bytes;
    version.memory_group = size->memory_group;
    return;
  }
  version.failed_in_load = false;
  Fail(id, size.status(), now);
}

void Lifecycle::Verified(const VersionId& id, const absl::Status& status, Time now) {
  Version& version = versions_.at(id);
  Model& model = models_.at(id.name);
  version.job = Version::Job::kNone;
  ++changes_;
  if (!version.why_stopped.empty()) {
    model.exchange.reset();
    return Stopped(id, now);
  }
  if (!status.ok()) {
    model.exchange.reset();
    version.failed_in_load = false;
    return Fail(id, status, now);
  }
  Exchange& exchange = *model.exchange;
  const bool rolling = exchange.mode == SwapMode::kRolling;
  for (const uint64_t victim : exchange.victims) {
    const Version* old = Find({id.name, victim});
    const bool ready = old != nullptr && old->state == v1::MODEL_STATE_READY;
    if (!MayGo(model, victim, id.version) ||
        (rolling && !ready)) {  // things have changed: plan again
      model.exchange.reset();
      return PutBack(id, now);
    }
  }
  version.costly = true;
  if (rolling) {
    exchange.phase = Exchange::Phase::kShrinkOld;
    return BeginWorkers({id.name, exchange.victims.front()}, options_.workers - 1);
  }
  exchange.phase = Exchange::Phase::kDrainOld;
  version.message = "waits until the answers of the version that makes way have ended";
  for (const uint64_t victim : exchange.victims) {
    const Version* old = Find({id.name, victim});
    if (old != nullptr && old->state == v1::MODEL_STATE_READY) {
      Unroute({id.name, victim}, absl::StrCat("makes way for version ", id.version), now);
    }
  }
}

void Lifecycle::Warming(const VersionId& id, Time now) {
  if (versions_.at(id).state == v1::MODEL_STATE_LOADING) {
    Enter(id, v1::MODEL_STATE_WARMING, "warming up and testing itself", now);
  }
}

void Lifecycle::Loaded(const VersionId& id, const absl::Status& status, Time now) {
  Version& version = versions_.at(id);
  Model& model = models_.at(id.name);
  version.job = Version::Job::kNone;
  ++changes_;
  const bool exchanged = model.exchange && model.exchange->candidate == id.version;
  const bool rolling = exchanged && model.exchange->mode == SwapMode::kRolling;
  if (status.ok()) {
    version.held = version.fresh = true;
    version.failures = 0;
    version.error = absl::OkStatus();
    version.loaded_mark.clear();
    version.why_stopped.clear();  // too late
    version.costly = rolling;
    if (rolling) {
      model.exchange->phase = Exchange::Phase::kMove;
    } else if (exchanged) {
      model.exchange.reset();
    }
    return;
  }
  if (version.why_stopped.empty()) {
    version.failed_in_load = true;
    Fail(id, status, now);
  } else {
    Stopped(id, now);
  }
  if (rolling) return RestoreWorkers(id.name, model);
  if (exchanged) {
    const auto& victims = model.exchange->victims;
    model.restore.insert(victims.begin(), victims.end());
    model.exchange.reset();
  }
}

void Lifecycle::WorkersSet(const VersionId& id, const absl::Status& status, Time now) {
  using Phase = Exchange::Phase;
  Version& version = versions_.at(id);
  Model& model = models_.at(id.name);
  version.job = Version::Job::kNone;
  ++changes_;
  if (status.ok()) version.workers = version.workers_wanted;
  if (!model.exchange) return;
  Exchange& exchange = *model.exchange;
  const VersionId candidate{id.name, exchange.candidate};
  const absl::Status error(
      status.code(), absl::StrCat("version ", id.version, " cannot go from ", version.workers,
                                  " workers to ", version.workers_wanted, ": ", status.message()));
  switch (exchange.phase) {
    case Phase::kShrinkOld:
      if (status.ok() && Wants(candidate)) {
        exchange.phase = Phase::kLoadNew;
        return BeginLoad(candidate, 1, id.version);
      }
      if (status.ok()) {
        PutBack(candidate, now);
      } else {
        Fail(candidate, error, now);
      }
      return RestoreWorkers(id.name, model);
    case Phase::kMove:
      if (!status.ok()) versions_.at(candidate).broken = error;
      return;
    case Phase::kGrowNew:
      if (status.ok()) {
        swaps_.push_back({candidate, exchange.mode, now - version.begun});
        version.costly = false;
      } else {
        version.message = std::string(error.message());
      }
      return model.exchange.reset();
    case Phase::kRestoreOld:
      if (!status.ok()) version.message = std::string(error.message());
      return model.exchange.reset();
    default:
      return;
  }
}

void Lifecycle::Idle(const VersionId& id, Time now) {
  Version& version = versions_.at(id);
  if (version.state != v1::MODEL_STATE_DRAINING || !version.held ||
      version.job != Version::Job::kNone) {
    return;
  }
  version.held = false;
  version.job = Version::Job::kRelease;
  version.released = now;
  steps_.push_back({Step::Kind::kRelease, id});
}

void Lifecycle::Freed(const VersionId& id, Time now) {
  Version& version = versions_.at(id);
  version.job = Version::Job::kNone;
  version.workers = 0;
  ++changes_;
  if (version.broken.ok()) {
    Enter(id, v1::MODEL_STATE_UNLOADED, version.message, now);
    if (!version.present) Prune(id.name);
  } else {
    version.failed_in_load = true;
    Fail(id, std::exchange(version.broken, absl::OkStatus()), now);
  }
  for (auto& [other, each] : versions_) {  // there is room now
    if (each.state == v1::MODEL_STATE_FAILED && each.refused) each.retry_at = now;
  }
}

void Lifecycle::Broke(const VersionId& id, const absl::Status& status, Time now) {
  Version& version = versions_.at(id);
  if (version.state != v1::MODEL_STATE_READY || !version.broken.ok()) return;
  const Model& model = models_.at(id.name);
  if (InExchange(model, id.version)) {
    // A new version that breaks ends the exchange; an old one leaves anyway.
    if (model.exchange->candidate == id.version) version.broken = status;
    ++changes_;
    return;
  }
  version.broken = status;
  Unroute(id, std::string(status.message()), now);
}

std::vector<Lifecycle::Transition> Lifecycle::TakeTransitions() {
  return std::exchange(transitions_, {});
}

std::vector<Lifecycle::Swap> Lifecycle::TakeSwaps() { return std::exchange(swaps_, {}); }

}  // namespace llava
