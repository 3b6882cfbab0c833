// The manager's answers: calls that wait for a version, lists and states, and when only a new
// process helps.

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/util/time_util.h"
#include "server/lifecycle/model_manager.h"
#include "server/runtime/status.h"
#include "server/wire/name_size.h"

namespace llava {
namespace {

using Time = Lifecycle::Time;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kStopPoll{100}, kFirstLookRetryAfter{200};
// A version that has failed more often in a row is tried again, but nobody should wait for it.
constexpr int kFailuresOfWhatComes = 1;

google::protobuf::Timestamp WallTime(Time time, Time now) {
  const auto wall = std::chrono::system_clock::now() +
                    std::chrono::duration_cast<std::chrono::system_clock::duration>(time - now);
  return google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(
      std::chrono::duration_cast<std::chrono::microseconds>(wall.time_since_epoch()).count());
}

}  // namespace

absl::Status ModelManager::EndingError() {
  return absl::UnavailableError("the process is shutting down; nothing is loaded or unloaded");
}

absl::Status ModelManager::WaitUntilServing(const std::function<bool()>& stop) {
  if (!options_.must_start) return absl::OkStatus();
  MutexLock lock(mutex_);
  for (;;) {
    if (stop_) return absl::CancelledError("stopped");
    for (const auto& [model, count] : serving_) {
      if (count > 0) return absl::OkStatus();
    }
    if (!first_failure_.ok()) return first_failure_;
    if (stop && stop()) return absl::CancelledError("told to stop while the model was loading");
    round_.WaitUntil(mutex_, Clock::now() + kStopPoll);
  }
}

void ModelManager::AskForLostDevice() {
  if (device_lost_ || !options_.on_device_lost) return;
  std::string reason = loader_.device_lost();
  if (reason.empty()) reason = HungVersion();
  if (reason.empty()) return;
  device_lost_ = true;
  options_.on_device_lost(reason);
}

std::string ModelManager::HungVersion() {
  MutexLock lock(mutex_);
  const Time now = Clock::now();
  for (const auto& [id, held] : held_) {
    if (held.servable || held.memory.expired() || now - held.released < options_.hung_after) {
      continue;
    }
    const auto serving = serving_.find(id.name);
    if (draining_ || (serving != serving_.end() && serving->second > 0)) continue;
    for (const auto& [other, version] : lifecycle_.versions()) {
      if (other.name != id.name || !lifecycle_.Wants(other)) continue;
      return absl::StrCat("version ", id.version, " of ", id.name,
                          " hangs in a call to it, and its memory is needed");
    }
  }
  return "";
}

absl::StatusOr<VersionId> ModelManager::Resolve(const PendingCall& call) {
  VersionId id = call.id;
  if (id.version != 0) return id;
  std::vector<uint64_t> found;
  if (call.load) {
    const auto model = snapshot_.find(id.name);
    if (model != snapshot_.end() && !model->second.versions.empty()) {
      found.push_back(model->second.versions.rbegin()->first);
    }
  } else {
    for (const auto& [other, version] : lifecycle_.versions()) {
      if (other.name == id.name && version.held) found.push_back(other.version);
    }
  }
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat("model \"", id.name, "\" has no version ",
                                            call.load ? "in the repository" : "that is loaded"));
  }
  if (found.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("several versions are loaded, say which: ", absl::StrJoin(found, ", ")));
  }
  id.version = found.front();
  return id;
}

void ModelManager::ApplyCalls(Time now, Answers& answers) {
  for (auto each = calls_.begin(); each != calls_.end();) {
    PendingCall& call = each->second;
    if (!draining_ && (call.applied || call.look > look_)) {
      ++each;
      continue;
    }
    absl::StatusOr<VersionId> id = EndingError();
    if (!draining_) id = Resolve(call);
    if (id.ok()) {
      const Lifecycle::Version* version = lifecycle_.Find(*id);
      if (version == nullptr || (call.load && !version->present)) {
        id = absl::NotFoundError(
            absl::StrCat("model \"", id->name, "\" has no version ", id->version));
      } else {
        call.attempts = version->attempts;
        call.id = *id;
        call.applied = true;
        if (call.load) {
          lifecycle_.WantLoaded(*id, now);
        } else {
          lifecycle_.WantUnloaded(*id, now);
        }
        ++each;
        continue;
      }
    }
    answers.emplace_back(std::move(call.done), std::move(id));
    each = calls_.erase(each);
  }
}

void ModelManager::CollectAnswers(Answers& answers) {
  for (auto each = calls_.begin(); each != calls_.end();) {
    PendingCall& call = each->second;
    if (!call.applied) {
      ++each;
      continue;
    }
    const Lifecycle::Version* version = lifecycle_.Find(call.id);
    const v1::ModelState state = version == nullptr ? v1::MODEL_STATE_UNLOADED : version->state;
    absl::StatusOr<VersionId> answer = call.id;
    bool done = false;
    if (call.load) {
      if (state == v1::MODEL_STATE_READY && held_[call.id].routed) {
        done = true;
      } else if (state == v1::MODEL_STATE_FAILED && version->attempts > call.attempts) {
        done = true;
        answer = version->error;
      } else if (Resting(state) && !lifecycle_.Wants(call.id)) {
        done = true;
        answer = absl::AbortedError(
            absl::StrCat("another call, or the version policy, decided otherwise",
                         version == nullptr || version->message.empty() ? "" : ": ",
                         version == nullptr ? "" : version->message));
      }
    } else if (Resting(state)) {
      done = true;
    } else if (state == v1::MODEL_STATE_READY && lifecycle_.Wants(call.id)) {
      done = true;
      answer = absl::AbortedError("another call, or the version policy, wants it again");
    }
    if (!done) {
      ++each;
      continue;
    }
    answers.emplace_back(std::move(call.done), std::move(answer));
    each = calls_.erase(each);
  }
}

uint64_t ModelManager::Call(bool load, const std::string& name, uint64_t version, OnDone done) {
  absl::Status refused;
  {
    MutexLock lock(mutex_);
    if (stop_ || draining_) {
      refused = EndingError();
    } else if (name.empty()) {
      refused = absl::InvalidArgumentError("the name of the model is missing");
    } else {
      refused = CheckName(name);
    }
    if (refused.ok()) {
      const uint64_t number = next_call_++;
      PendingCall& call = calls_[number];
      call.load = load;
      call.id = {name, version};
      call.done = std::move(done);
      // Perhaps it has been published this moment.
      const bool look = load && watcher_ && lifecycle_.Find(call.id) == nullptr;
      call.look = look ? watcher_->LookNow() : look_;
      Wake();
      return number;
    }
  }
  done(refused);
  return 0;
}

bool ModelManager::Forget(uint64_t call) {
  MutexLock lock(mutex_);
  return calls_.erase(call) > 0;
}

void ModelManager::LookNow() {
  if (watcher_) watcher_->LookNow();
}

absl::Status ModelManager::CheckName(const std::string& name) {
  if (auto status = CheckModelBytes("the name of the model", name); !status.ok()) return status;
  std::set<std::string> known = options_.names;
  if (options_.fixed) known.insert(options_.fixed->name);
  for (const auto& [each, model] : snapshot_) known.insert(each);
  for (const auto& [id, version] : lifecycle_.versions()) known.insert(id.name);
  if (known.contains(name)) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("model \"", name, "\" is not served here; there is ",
                                          known.empty() ? "none yet" : absl::StrJoin(known, ", ")));
}

bool ModelManager::Knows(const std::string& name) {
  MutexLock lock(mutex_);
  return CheckName(name).ok();
}

absl::StatusOr<v1::ListModelsResponse> ModelManager::List(const std::string& name) {
  MutexLock lock(mutex_);
  if (stop_) return EndingError();  // not an empty list: who comes after has the versions again
  if (decided_look_ == 0) {
    return OverloadedError("the models have not been looked at yet", kFirstLookRetryAfter);
  }
  if (!name.empty()) {
    if (auto status = CheckName(name); !status.ok()) return status;
  }
  v1::ListModelsResponse list;
  for (const auto& [id, version] : lifecycle_.versions()) {
    if (!name.empty() && id.name != name) continue;
    const auto held = held_.find(id);
    v1::ModelInfo* info = nullptr;
    if (held != held_.end() && held->second.routed && held->second.servable) {
      info = list.add_models();
      *info = held->second.servable->info();
      info->clear_labels();
    } else if (lifecycle_.Wants(id) && version.failures <= kFailuresOfWhatComes &&
               !version.waits_for_change) {
      info = list.add_coming();
      info->mutable_model()->set_name(id.name);
      info->mutable_model()->set_version(id.version);
    }
    const auto model = snapshot_.find(id.name);
    if (info == nullptr || model == snapshot_.end()) continue;
    for (const auto& [label, labelled] : model->second.marks.labels) {
      if (labelled == id.version) info->add_labels(label);
    }
  }
  return list;
}

v1::ModelVersionStatus ModelManager::StatusOf(const VersionId& id,
                                              const Lifecycle::Version& version, Time now) {
  v1::ModelVersionStatus status;
  status.mutable_model()->set_name(id.name);
  status.mutable_model()->set_version(id.version);
  status.set_state(version.state);
  status.set_message(version.message);
  *status.mutable_since() = WallTime(version.since, now);
  status.set_self_test_drift(-1);
  status.set_failed_loads(static_cast<uint32_t>(version.failures));
  const bool loaded =
      version.state == v1::MODEL_STATE_READY || version.state == v1::MODEL_STATE_DRAINING;
  const auto held = held_.find(id);
  if (loaded) {
    status.set_load_progress(1);
  } else if (held != held_.end() && (version.state == v1::MODEL_STATE_LOADING ||
                                     version.state == v1::MODEL_STATE_WARMING)) {
    status.set_load_progress(held->second.progress);
  }
  if (version.state == v1::MODEL_STATE_FAILED && !version.waits_for_change) {
    *status.mutable_next_attempt() = WallTime(version.retry_at, now);
  }
  if (version.state == v1::MODEL_STATE_READY && (held == held_.end() || !held->second.routed)) {
    status.set_state(v1::MODEL_STATE_WARMING);  // for a moment: READY means routed
  } else if (draining_ && version.state == v1::MODEL_STATE_READY) {
    status.set_state(v1::MODEL_STATE_DRAINING);
    status.set_message("the process is draining");
  }
  return status;
}

absl::StatusOr<std::vector<v1::ModelVersionStatus>> ModelManager::Statuses(const std::string& name,
                                                                           uint64_t version) {
  std::vector<v1::ModelVersionStatus> statuses;
  std::vector<std::pair<size_t, const Servable*>> loaded;
  {
    MutexLock lock(mutex_);
    if (!name.empty()) {
      if (auto status = CheckName(name); !status.ok()) return status;
    }
    const Time now = Clock::now();
    std::map<std::string, std::vector<const std::pair<const VersionId, Lifecycle::Version>*>>
        models;
    for (const auto& each : lifecycle_.versions()) {
      const VersionId& id = each.first;
      if (!name.empty() && id.name != name) continue;
      if (version != 0 && id.version != version) continue;
      models[id.name].push_back(&each);
    }
    for (auto& [model, versions] : models) {
      for (auto each = versions.rbegin(); each != versions.rend(); ++each) {
        const auto& [id, state] = **each;
        statuses.push_back(StatusOf(id, state, now));
        const auto held = held_.find(id);
        if (held != held_.end() && held->second.servable) {
          loaded.emplace_back(statuses.size() - 1, held->second.servable.get());
        }
      }
    }
    ++readers_;
  }
  for (const auto& [index, servable] : loaded) {
    const ServableLoad load = servable->load();
    v1::ModelVersionStatus& status = statuses[index];
    status.mutable_model()->set_digest(servable->info().model().digest());
    status.set_weight_bytes(load.weight_bytes);
    status.set_in_flight(load.in_flight);
    status.set_queued(load.queued);
    status.set_nan_outputs(load.nan_outputs);
    status.set_queued_bytes(load.queued_bytes);
    if (load.feature_cache) *status.mutable_feature_cache() = *load.feature_cache;
    status.set_self_test_drift(servable->self_test_drift());
  }
  MutexLock lock(mutex_);
  --readers_;
  round_.NotifyAll();
  return statuses;
}

}  // namespace llava
