// Lifecycle::Next: from what is wanted and what is there to the steps between.

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/lifecycle/lifecycle.h"

namespace llava {
namespace {

bool Contains(const std::vector<uint64_t>& list, uint64_t version) {
  return std::find(list.begin(), list.end(), version) != list.end();
}

}  // namespace

std::vector<Lifecycle::Step> Lifecycle::Next(Time now) {
  // Each round may bring about another: a refusal wants a stand-in.
  uint64_t before = 0;
  do {
    before = changes_;
    if (draining_) break;
    for (auto& [name, model] : models_) {
      Choose(name, model);
      RouteFresh(name, model, now);
      Settle(name, model, now);
      Advance(name, model, now);
    }
    StartLoads(now);
  } while (changes_ != before);
  return std::exchange(steps_, {});
}

Lifecycle::Time Lifecycle::NextTime(Time now) const {
  Time next = Time::max();
  for (const auto& [id, version] : versions_) {
    if (version.state == v1::MODEL_STATE_FAILED && !version.waits_for_change &&
        version.retry_at > now && Wants(id)) {
      next = std::min(next, version.retry_at);
    }
    if (version.job == Version::Job::kRelease && !Hangs(version, now)) {
      next = std::min(next, version.released + options_.hung_after);
    }
  }
  return next;
}

void Lifecycle::Choose(const std::string& name, Model& model) {
  std::set<uint64_t> failed;
  for (const auto& [version, mark] : model.seen.versions) {
    if (versions_.at({name, version}).failures > 0) failed.insert(version);
  }
  VersionChoice choice = ChooseVersions(options_.policy, model.seen, failed, model.wishes);
  if (choice.targets != model.choice.targets) {
    model.wishes = {};
    choice = ChooseVersions(options_.policy, model.seen, failed, model.wishes);
  }
  model.choice = std::move(choice);
  if (!model.restore.empty() && Missing(name, model) == 0 && !model.exchange) {
    model.restore.clear();
  }
  for (const uint64_t version : model.restore) {
    if (model.seen.versions.contains(version) && !Contains(model.choice.wanted, version)) {
      model.choice.wanted.push_back(version);
    }
  }
}

bool Lifecycle::IsTarget(const Model& model, uint64_t version) const {
  return (Contains(model.choice.targets, version) || model.wishes.load.contains(version)) &&
         !model.wishes.unload.contains(version);
}

bool Lifecycle::MayGo(const Model& model, uint64_t version, uint64_t candidate) const {
  if (IsTarget(model, version)) return false;
  return IsTarget(model, candidate) || !Contains(model.choice.wanted, version);
}

bool Lifecycle::InExchange(const Model& model, uint64_t version) const {
  if (!model.exchange) return false;
  if (model.exchange->candidate == version) return true;
  return model.exchange->phase != Exchange::Phase::kVerify &&
         Contains(model.exchange->victims, version);
}

size_t Lifecycle::Missing(const std::string& name, const Model& model) const {
  std::set<uint64_t> needed;
  for (const uint64_t version : model.choice.targets) {
    if (IsTarget(model, version)) needed.insert(version);
  }
  for (const uint64_t version : model.wishes.load) {
    if (model.seen.versions.contains(version)) needed.insert(version);
  }
  if (needed.empty()) return std::numeric_limits<size_t>::max();  // nobody asks: all stays
  size_t ready = 0;
  for (const uint64_t version : model.choice.wanted) {
    ready += versions_.at({name, version}).state == v1::MODEL_STATE_READY ? 1 : 0;
  }
  return needed.size() > ready ? needed.size() - ready : 0;
}

uint64_t Lifecycle::NewestReady(const std::string& name, uint64_t except) const {
  uint64_t newest = 0;
  for (auto each = versions_.lower_bound({name, 0});
       each != versions_.end() && each->first.name == name; ++each) {
    if (each->second.state == v1::MODEL_STATE_READY && each->first.version != except) {
      newest = each->first.version;
    }
  }
  return newest;
}

void Lifecycle::RouteFresh(const std::string& name, Model& model, Time now) {
  for (auto each = versions_.lower_bound({name, 0});
       each != versions_.end() && each->first.name == name; ++each) {
    const auto& [id, version] = *each;
    if (!version.fresh) continue;
    each->second.fresh = false;
    const bool unwished = model.wishes.unload.contains(id.version);
    if (!unwished && (Wants(id) || InExchange(model, id.version) || Missing(name, model) > 0)) {
      Route(id, now);
      if (version.replaced != 0 && version.mode != SwapMode::kRolling) {
        swaps_.push_back({id, version.mode, now - version.begun});
      }
    } else {
      Enter(id, v1::MODEL_STATE_DRAINING,
            unwished ? "unloaded by request" : "not wanted any more when it was loaded", now);
    }
  }
}

void Lifecycle::Settle(const std::string& name, Model& model, Time now) {
  const auto begin = versions_.lower_bound({name, 0});
  const auto end = versions_.upper_bound({name, std::numeric_limits<uint64_t>::max()});
  const auto unwished = [&](uint64_t version) { return model.wishes.unload.contains(version); };
  const auto can_come_back = [](const Version& version) {
    return version.state == v1::MODEL_STATE_DRAINING && version.held &&
           version.job == Version::Job::kNone && version.broken.ok();
  };

  // What failed and is not wanted any more is nobody's trouble: it can be had, or is gone.
  bool gone = false;
  for (auto each = begin; each != end; ++each) {
    const auto& [id, version] = *each;
    if (version.state != v1::MODEL_STATE_FAILED || version.job != Version::Job::kNone ||
        Wants(id) || InExchange(model, id.version)) {
      continue;
    }
    gone = gone || !version.present;
    Enter(id, version.present ? v1::MODEL_STATE_AVAILABLE : v1::MODEL_STATE_UNLOADED,
          absl::StrCat(version.present ? "not wanted any more" : "its folder was deleted",
                       "; it failed: ", version.message),
          now);
  }
  if (gone) return Prune(name);  // what is left is settled in the next turn

  // A version that is wanted again while its last answers end needs no loading.
  for (auto each = begin; each != end; ++each) {
    const VersionId& id = each->first;
    if (can_come_back(each->second) && Wants(id) && !InExchange(model, id.version)) Route(id, now);
  }

  // As long as wanted versions are missing, others stay in their place: the newest.
  size_t missing = Missing(name, model);
  std::vector<VersionId> others;
  for (const bool ready : {true, false}) {
    for (auto each = end; each != begin;) {
      --each;
      const auto& [id, version] = *each;
      if (Wants(id) || unwished(id.version) || InExchange(model, id.version)) continue;
      if (ready ? version.state == v1::MODEL_STATE_READY : can_come_back(version)) {
        others.push_back(id);
      }
    }
  }
  for (const VersionId& id : others) {
    const bool routed = versions_.at(id).state == v1::MODEL_STATE_READY;
    if (missing > 0) {
      --missing;
      if (!routed && NewestReady(name) == 0) Route(id, now);
    } else if (routed) {
      const uint64_t newest = NewestReady(name, id.version);
      Unroute(
          id,
          newest == 0 ? "not wanted any more" : absl::StrCat("version ", newest, " took its place"),
          now);
    }
  }

  missing = Missing(name, model);
  for (auto each = begin; each != end; ++each) {
    const auto& [id, version] = *each;
    if (version.state == v1::MODEL_STATE_READY && !InExchange(model, id.version)) {
      if (unwished(id.version)) {
        Unroute(id, "unloaded by request", now);
      } else if (!version.broken.ok()) {
        Unroute(id, std::string(version.broken.message()), now);
      }
    }
    const bool reading = version.job == Version::Job::kVerify || version.job == Version::Job::kLoad;
    if (reading && version.why_stopped.empty() && !Wants(id) &&
        (unwished(id.version) || missing == 0)) {
      each->second.why_stopped =
          unwished(id.version) ? "unloaded by request" : "not wanted any more";
      steps_.push_back({Step::Kind::kStop, id});
    }
  }
}

void Lifecycle::Advance(const std::string& name, Model& model, Time now) {
  if (!model.exchange) return;
  if (model.exchange->mode == SwapMode::kRolling) return AdvanceRolling(name, model, now);
  if (model.exchange->phase != Exchange::Phase::kDrainOld) return;
  const VersionId id{name, model.exchange->candidate};
  Version& version = versions_.at(id);
  if (!Wants(id)) {  // the old ones come back
    model.exchange.reset();
    version.costly = false;
    if (version.present) {
      version.why_stopped = "not wanted any more";
      Stopped(id, now);
    } else {
      Fail(id, absl::NotFoundError("its folder was deleted while it waited to be loaded"), now);
    }
    return;
  }
  for (const uint64_t victim : model.exchange->victims) {
    const Version* old = Find({name, victim});
    if (old == nullptr || old->state != v1::MODEL_STATE_DRAINING) continue;
    if (Hangs(*old, now)) GiveUpInPlace(id, victim, model, now);
    return;
  }
  model.exchange->phase = Exchange::Phase::kLoadNew;
  version.message = "reads its files, after the old version has made way";
  BeginLoad(id, options_.workers, 0);
}

void Lifecycle::GiveUpInPlace(const VersionId& id, uint64_t hangs, Model& model, Time now) {
  const auto& victims = model.exchange->victims;
  model.restore.insert(victims.begin(), victims.end());
  model.exchange.reset();
  Version& version = versions_.at(id);
  version.costly = version.failed_in_load = false;
  Fail(id,
       absl::ResourceExhaustedError(absl::StrCat("version ", hangs, " has made way and hangs in a ",
                                                 "call: its memory is not free")),
       now);
  version.refused = true;
}

void Lifecycle::GiveUpRolling(const VersionId& id, uint64_t hangs, Model& model) {
  model.exchange.reset();
  ++changes_;
  const auto found = versions_.find(id);
  if (found == versions_.end()) return;
  Version& version = found->second;
  version.costly = false;
  version.message = absl::StrCat("serves on ", version.workers, " workers: version ", hangs,
                                 " hangs in a call on another");
}

void Lifecycle::AdvanceRolling(const std::string& name, Model& model, Time now) {
  using Phase = Exchange::Phase;
  Exchange& exchange = *model.exchange;
  const VersionId id{name, exchange.candidate}, old_id{name, exchange.victims.front()};
  Version& version = versions_.at(id);
  const auto old_entry = versions_.find(old_id);
  Version* old = old_entry == versions_.end() ? nullptr : &old_entry->second;
  if (version.job != Version::Job::kNone) return;
  if (old != nullptr && old->job == Version::Job::kSetWorkers) return;
  switch (exchange.phase) {
    case Phase::kMove:
      if (version.state != v1::MODEL_STATE_READY) {  // unloaded before it was routed
        exchange.phase = Phase::kDropNew;
        return;
      }
      if (!version.broken.ok() || model.wishes.unload.contains(id.version)) {
        version.costly = true;
        exchange.phase = Phase::kDropNew;
        return Unroute(
            id, version.broken.ok() ? "unloaded by request" : std::string(version.broken.message()),
            now);
      }
      if (version.workers < options_.workers - old->workers) {
        BeginWorkers(id, options_.workers - old->workers);
      } else if (old->workers > 1) {
        BeginWorkers(old_id, old->workers - 1);
      } else {
        exchange.phase = Phase::kDrainOld;
        Unroute(old_id, absl::StrCat("version ", id.version, " took its place"), now);
      }
      return;
    case Phase::kDrainOld:
      if (old != nullptr && old->state == v1::MODEL_STATE_DRAINING) {
        if (Hangs(*old, now)) GiveUpRolling(id, old_id.version, model);
        return;
      }
      exchange.phase = Phase::kGrowNew;
      return BeginWorkers(id, options_.workers);
    case Phase::kDropNew:
      if (version.state != v1::MODEL_STATE_DRAINING) return RestoreWorkers(name, model);
      if (Hangs(version, now)) GiveUpRolling(old_id, id.version, model);
      return;
    default:
      return;
  }
}

void Lifecycle::RestoreWorkers(const std::string& name, Model& model) {
  const VersionId old_id{name, model.exchange->victims.front()};
  const Version* old = Find(old_id);
  ++changes_;
  if (old == nullptr || old->state != v1::MODEL_STATE_READY || old->workers == options_.workers) {
    return model.exchange.reset();
  }
  model.exchange->phase = Exchange::Phase::kRestoreOld;
  BeginWorkers(old_id, options_.workers);
}

bool Lifecycle::Due(const Version& version, Time now) const {
  switch (version.state) {
    case v1::MODEL_STATE_AVAILABLE:
    case v1::MODEL_STATE_UNLOADED:
      return true;
    case v1::MODEL_STATE_FAILED:
      return !version.waits_for_change && version.retry_at <= now;
    default:
      return false;
  }
}

void Lifecycle::StartLoads(Time now) {
  std::vector<std::tuple<bool, size_t, VersionId>> candidates;
  for (const auto& [name, model] : models_) {
    if (model.exchange) continue;
    const bool served = NewestReady(name) != 0;
    for (size_t i = 0; i < model.choice.wanted.size(); ++i) {
      const VersionId id{name, model.choice.wanted[i]};
      if (Due(versions_.at(id), now)) candidates.emplace_back(served, i, id);
    }
  }
  std::sort(candidates.begin(), candidates.end());
  for (const auto& [served, rank, id] : candidates) {
    if (!TryStart(id, models_.at(id.name), now)) return;
  }
}

bool Lifecycle::TryStart(const VersionId& id, Model& model, Time now) {
  Version& version = versions_.at(id);
  if (version.job != Version::Job::kNone) return false;
  if (version.bytes.empty()) {
    version.job = Version::Job::kEstimate;
    version.loaded_mark = version.mark;
    steps_.push_back({Step::Kind::kEstimate, id});
    return false;
  }
  if (SlotsInUse() >= options_.load_slots) return false;
  const SwapPlan plan = PlanSwap(RequestFor(id, model, now));
  const uint64_t ready = NewestReady(id.name);
  switch (plan.verdict) {
    case SwapPlan::Verdict::kWait:
      version.message = plan.why;
      return false;
    case SwapPlan::Verdict::kRefuse:
      version.failed_in_load = false;
      version.loaded_mark.clear();
      Fail(id, absl::ResourceExhaustedError(plan.why), now);
      version.refused = true;
      return true;
    case SwapPlan::Verdict::kGo:
      break;
  }
  const bool beside = plan.mode == SwapMode::kSideBySide;
  const bool failed = version.state == v1::MODEL_STATE_FAILED && version.failures > 0;
  if (!beside && failed && version.failed_in_load) {
    version.waits_for_change = true;
    absl::StrAppend(&version.message, " (not tried again until its files change or LoadModel ",
                    "asks: version ", plan.victims.front(), " would make way for it)");
    return true;
  }
  version.mode = plan.mode;
  version.begun = now;
  version.replaced = ready;
  version.why_stopped.clear();
  version.costly = false;
  Enter(id, v1::MODEL_STATE_LOADING,
        beside ? absl::StrCat("reads its files: ", plan.why)
               : absl::StrCat("checks its files before version ", plan.victims.front(),
                              " makes way (", ToString(plan.mode), "): ", plan.why),
        now);
  if (beside) {
    BeginLoad(id, options_.workers, ready);
    return true;
  }
  Exchange exchange;
  exchange.mode = plan.mode;
  exchange.candidate = id.version;
  exchange.victims = plan.victims;
  model.exchange = std::move(exchange);
  version.job = Version::Job::kVerify;
  version.loaded_mark = version.mark;
  steps_.push_back({Step::Kind::kVerify, id});
  return true;
}

int Lifecycle::SlotsInUse() const {
  int slots = 0;
  for (const auto& [name, model] : models_) slots += model.exchange ? 1 : 0;
  for (const auto& [id, version] : versions_) {
    const auto model = models_.find(id.name);
    const bool loading = version.job == Version::Job::kLoad;
    if (loading && !(model->second.exchange && model->second.exchange->candidate == id.version)) {
      ++slots;
    }
  }
  return slots;
}

bool Lifecycle::Hangs(const Version& version, Time now) const {
  return version.job == Version::Job::kRelease && now - version.released >= options_.hung_after;
}

bool Lifecycle::InMotion(Time now) const {
  if (SlotsInUse() > 0) return true;
  return std::any_of(versions_.begin(), versions_.end(), [&](const auto& each) {
    const Version& version = each.second;
    return version.fresh || (version.state == v1::MODEL_STATE_DRAINING && !Hangs(version, now));
  });
}

bool Lifecycle::FirstLoadsDone() const {
  const auto has_no_result = [](const Version& version) {
    return version.attempts == 0 &&
           (version.state == v1::MODEL_STATE_AVAILABLE ||
            version.state == v1::MODEL_STATE_LOADING || version.state == v1::MODEL_STATE_WARMING ||
            version.state == v1::MODEL_STATE_UNLOADED);
  };
  return looked_ && std::none_of(models_.begin(), models_.end(), [&](const auto& each) {
           const auto& [name, model] = each;
           size_t ready = 0;
           for (const auto& [id, version] : versions_) {
             ready += id.name == name && version.state == v1::MODEL_STATE_READY ? 1 : 0;
           }
           return ready < model.choice.targets.size() &&
                  std::any_of(model.choice.wanted.begin(), model.choice.wanted.end(),
                              [&](uint64_t wanted) {
                                // A process that drains chooses no more: it may be gone.
                                const Version* version = Find({name, wanted});
                                return version != nullptr && has_no_result(*version);
                              });
         });
}

bool Lifecycle::Settled() const {
  if (SlotsInUse() > 0) return false;
  for (const auto& [id, version] : versions_) {
    if (version.job != Version::Job::kNone || version.fresh ||
        version.state == v1::MODEL_STATE_DRAINING) {
      return false;
    }
    if (Wants(id) &&
        (version.state == v1::MODEL_STATE_AVAILABLE || version.state == v1::MODEL_STATE_UNLOADED)) {
      return false;
    }
  }
  return true;
}

}  // namespace llava
