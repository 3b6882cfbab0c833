#include "server/lifecycle/model_manager.h"

#include <algorithm>
#include <exception>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/lifecycle/version_check.h"
#include "server/runtime/logging.h"
#include "server/runtime/seconds.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

using Time = Lifecycle::Time;
using Clock = std::chrono::steady_clock;

// How often versions are asked whether they have ended (while one drains), or died.
constexpr auto kDrainPoll = std::chrono::milliseconds(10);
constexpr auto kHealthPoll = std::chrono::milliseconds(250);

Lifecycle::Options CoreOptions(const ModelManager::Options& options, int workers) {
  Lifecycle::Options core;
  core.policy = options.policy;
  core.memory_budget = options.memory_budget;
  core.soft_budget = options.soft_budget;
  core.swap_mode = options.swap_mode;
  core.workers = std::max(1, workers);
  core.load_slots = std::max(1, options.load_threads);
  core.retry_delay = options.retry_delay;
  core.retry_max_delay = options.retry_max_delay;
  core.hung_after = options.hung_after;
  core.seed = options.seed != 0 ? options.seed : std::random_device()();
  return core;
}

template <typename Function>
auto Guarded(Function function) -> decltype(function()) {
  try {
    return function();
  } catch (...) {
    return FromException(std::current_exception());
  }
}

}  // namespace

int ModelManager::Options::served_versions() const {
  if (fixed) return 1;
  switch (policy.kind) {
    case VersionPolicy::Kind::kVersions:
      return static_cast<int>(policy.versions.size());
    case VersionPolicy::Kind::kLatest:
      return policy.count;
    case VersionPolicy::Kind::kAuto:
    case VersionPolicy::Kind::kLabels:
      break;
  }
  return 2;
}

int ModelManager::Options::most_versions() const {
  const bool beside = swap_mode.value_or(SwapMode::kSideBySide) == SwapMode::kSideBySide;
  const bool one_more = !fixed && policy.kind == VersionPolicy::Kind::kLatest && beside;
  return served_versions() + (one_more ? 1 : 0);
}

ModelManager::ModelManager(Options options, ServableLoader& loader, Metrics& metrics)
    : options_(std::move(options)),
      loader_(loader),
      workers_(std::max(1, loader.workers())),
      metrics_(metrics, options_.memory_budget),
      lifecycle_(CoreOptions(options_, workers_)) {
  if (options_.fixed) return;
  RepositoryWatcher::Options watch;
  watch.root = options_.root;
  watch.names = options_.names;
  watch.kind = options_.kind;
  watch.poll_interval = options_.poll_interval;
  watcher_ = std::make_unique<RepositoryWatcher>(
      watch, metrics, [this](uint64_t look, const absl::StatusOr<RepositorySnapshot>& snapshot) {
        OnLook(look, snapshot);
      });
}

void ModelManager::Start() {
  for (int i = 0; i < std::max(1, options_.load_threads); ++i) {
    threads_.emplace_back([this] { Worker(loads_); });
  }
  threads_.emplace_back([this] { Worker(chores_); });
  threads_.emplace_back([this] { Control(); });
  if (watcher_) {
    watcher_->Start();
  } else {
    RepositorySnapshot snapshot;
    snapshot[options_.fixed->name].versions[options_.fixed->version] = "fixed";
    OnLook(1, snapshot);
  }
}

void ModelManager::Stop() {
  {
    MutexLock lock(mutex_);
    if (stop_.exchange(true)) return;
    Wake();
    jobs_.NotifyAll();
    round_.NotifyAll();
  }
  if (watcher_) watcher_->Stop();
  for (std::thread& thread : threads_) thread.join();
  std::map<VersionId, Held> held;
  std::map<uint64_t, PendingCall> calls;
  {
    MutexLock lock(mutex_);
    while (readers_ > 0) round_.Wait(mutex_);
    held.swap(held_);
    calls.swap(calls_);
  }
  for (const auto& [id, each] : held) {
    if (each.routed) loader_.Unroute(id.name, id.version);
  }
  for (const auto& [number, call] : calls) call.done(EndingError());
}

void ModelManager::Drain() {
  MutexLock lock(mutex_);
  draining_ = true;
  lifecycle_.Drain();
  Wake();
}

void ModelManager::OnLook(uint64_t look, const absl::StatusOr<RepositorySnapshot>& snapshot) {
  MutexLock lock(mutex_);
  if (snapshot.ok() && (look_ == 0 || *snapshot != snapshot_)) {
    snapshot_ = *snapshot;
    lifecycle_.SetRepository(snapshot_, Clock::now());
  }
  look_ = look;
  look_error_ = snapshot.status();
  Wake();
}

VersionRef ModelManager::RefOf(const VersionId& id) const {
  if (options_.fixed) return *options_.fixed;
  return {id.name, id.version, options_.root / id.name / absl::StrCat(id.version)};
}

void ModelManager::Control() {
  while (Round()) {
    AskForLostDevice();
    AskServables();
  }
}

bool ModelManager::Round() {
  std::vector<std::pair<Lifecycle::Step, std::shared_ptr<Servable>>> routing;
  Answers answers;
  bool first_loads_done = false;
  {
    MutexLock lock(mutex_);
    const Time now = Clock::now();
    decided_look_ = look_;
    ApplyCalls(now, answers);
    for (Lifecycle::Step& step : lifecycle_.Next(now)) {
      Held& held = held_[step.id];
      switch (step.kind) {
        case Lifecycle::Step::Kind::kEstimate:
        case Lifecycle::Step::Kind::kRelease:
          chores_.push_back(std::move(step));
          break;
        case Lifecycle::Step::Kind::kVerify:
        case Lifecycle::Step::Kind::kLoad:
        case Lifecycle::Step::Kind::kSetWorkers:
          held.stop = std::make_shared<std::atomic<bool>>(false);
          held.progress = 0;
          loads_.push_back(std::move(step));
          break;
        case Lifecycle::Step::Kind::kStop:
          held.stop->store(true);
          break;
        case Lifecycle::Step::Kind::kUnroute:
        case Lifecycle::Step::Kind::kRoute:
          routing.emplace_back(std::move(step), held.servable);
          break;
      }
    }
    jobs_.NotifyAll();
    first_loads_done = !first_loads_done_ && lifecycle_.FirstLoadsDone();
    Report(lifecycle_.TakeTransitions());
    for (const Lifecycle::Swap& swap : lifecycle_.TakeSwaps()) {
      metrics_.SwapSeconds(swap.mode).Observe(Seconds(swap.took));
    }
    metrics_.estimated_bytes.Set(static_cast<double>(lifecycle_.EstimatedBytes()));
  }

  // One after the other: a list made meanwhile shows the new version, the old one, or both.
  for (auto& [step, servable] : routing) {
    const bool route = step.kind == Lifecycle::Step::Kind::kRoute;
    if (route) loader_.Route(std::move(servable));
    servable.reset();
    {
      MutexLock lock(mutex_);
      held_[step.id].routed = route;
    }
    if (!route) loader_.Unroute(step.id.name, step.id.version);
  }

  std::map<std::string, int> serving;
  std::vector<std::pair<std::string, int>> changes;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, held] : held_) serving[id.name] += held.routed ? 1 : 0;
    for (const auto& [model, count] : serving) {
      const auto before = serving_.find(model);
      if (before != serving_.end() ? before->second != count : count > 0) {
        changes.emplace_back(model, count);
        serving_[model] = count;
      }
    }
    // A model that is wanted and not served is missed; of one that nobody wants, nothing is.
    std::erase_if(serving, [](const auto& each) { return each.second == 0; });
    std::set<VersionId> from_memory;
    for (const auto& [id, version] : lifecycle_.versions()) {
      if (lifecycle_.Wants(id)) serving.try_emplace(id.name, 0);
      if (version.state == v1::MODEL_STATE_READY && !version.present) from_memory.insert(id);
    }
    metrics_.ShowServing(serving);
    metrics_.ShowWithoutFolder(std::move(from_memory));
    CollectAnswers(answers);
    if (first_failure_.ok()) first_failure_ = FirstFailure();
  }
  for (const auto& [model, count] : changes) {
    if (options_.on_serving) options_.on_serving(model, count);
  }
  if (first_loads_done) {
    first_loads_done_ = true;
    if (options_.on_first_loads) options_.on_first_loads();
  }
  for (const auto& [done, result] : answers) {
    if (!result.ok()) {
      done(result.status());
      continue;
    }
    auto statuses = Statuses(result->name, result->version);
    if (statuses.ok() && !statuses->empty()) {
      done(statuses->front());
      continue;
    }
    v1::ModelVersionStatus gone;
    gone.mutable_model()->set_name(result->name);
    gone.mutable_model()->set_version(result->version);
    gone.set_state(v1::MODEL_STATE_UNLOADED);
    gone.set_self_test_drift(-1);
    done(gone);
  }

  MutexLock lock(mutex_);
  round_.NotifyAll();
  const Time now = Clock::now();
  Time due = lifecycle_.NextTime(now);
  for (const auto& [id, version] : lifecycle_.versions()) {
    if (version.state == v1::MODEL_STATE_DRAINING) due = std::min(due, now + kDrainPoll);
    if (version.state == v1::MODEL_STATE_READY) due = std::min(due, now + kHealthPoll);
  }
  while (!woken_ && !stop_) {
    if (due == Time::max()) {
      changed_.Wait(mutex_);
    } else if (!changed_.WaitUntil(mutex_, due)) {
      break;
    }
  }
  woken_ = false;
  return !stop_;
}

// Whether versions that drain have ended, and those that are served live.
void ModelManager::AskServables() {
  struct Question {
    VersionId id;
    Servable* servable;
    bool drains;
    ServableLoad load;
  };
  std::vector<Question> questions;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, held] : held_) {
      const Lifecycle::Version* version = lifecycle_.Find(id);
      if (!held.servable || version == nullptr) continue;
      // One that shall drain is idle only once it is not routed any more: requests still come, and
      // the routes would be the last to hold it.
      const bool drains = version->state == v1::MODEL_STATE_DRAINING && !held.routed;
      if (drains || version->state == v1::MODEL_STATE_READY) {
        questions.push_back({id, held.servable.get(), drains, {}});
      }
    }
    ++readers_;
  }
  for (Question& question : questions) question.load = question.servable->load();

  MutexLock lock(mutex_);
  --readers_;
  round_.NotifyAll();
  const Time now = Clock::now();
  for (const Question& question : questions) {
    const ServableLoad& load = question.load;
    if (question.drains && load.in_flight == 0 && load.queued == 0) {
      lifecycle_.Idle(question.id, now);
    } else if (!question.drains && !load.failure.empty()) {
      lifecycle_.Broke(question.id, absl::InternalError(load.failure), now);
    }
  }
  for (auto each = held_.begin(); each != held_.end();) {
    const Lifecycle::Version* version = lifecycle_.Find(each->first);
    if (version == nullptr) {
      each = held_.erase(each);
      continue;
    }
    if (version->state == v1::MODEL_STATE_DRAINING && !version->held && !each->second.servable &&
        each->second.memory.expired()) {
      metrics_.drain_seconds.Observe(Seconds(now - version->since));
      lifecycle_.Freed(each->first, now);
      each->second = {};
    }
    ++each;
  }
}

void ModelManager::Worker(std::deque<Lifecycle::Step>& jobs) {
  for (;;) {
    Lifecycle::Step step;
    {
      MutexLock lock(mutex_);
      while (jobs.empty() && !stop_) jobs_.Wait(mutex_);
      if (stop_) return;
      step = std::move(jobs.front());
      jobs.pop_front();
    }
    Do(step);
  }
}

void ModelManager::Do(const Lifecycle::Step& step) {
  const auto stopped = [this, stop = [&] {
    MutexLock lock(mutex_);
    return held_[step.id].stop;
  }()] { return stop_ || *stop; };
  switch (step.kind) {
    case Lifecycle::Step::Kind::kEstimate: {
      const auto size = Guarded([&] { return DoEstimate(step.id); });
      MutexLock lock(mutex_);
      lifecycle_.Estimated(step.id, size, Clock::now());
      return Wake();
    }
    case Lifecycle::Step::Kind::kVerify: {
      const absl::Status status =
          CheckVersionFiles(RefOf(step.id).folder, options_.load_bytes_per_second, stopped);
      MutexLock lock(mutex_);
      lifecycle_.Verified(step.id, status, Clock::now());
      return Wake();
    }
    case Lifecycle::Step::Kind::kLoad: {
      const absl::Status status = DoLoad(step);
      MutexLock lock(mutex_);
      lifecycle_.Loaded(step.id, status, Clock::now());
      return Wake();
    }
    case Lifecycle::Step::Kind::kSetWorkers: {
      Servable* servable = nullptr;  // held until this job has ended
      {
        MutexLock lock(mutex_);
        servable = held_[step.id].servable.get();
      }
      const absl::Status status =
          Guarded([&] { return servable->SetWorkers(step.workers, stopped); });
      MutexLock lock(mutex_);
      lifecycle_.WorkersSet(step.id, status, Clock::now());
      return Wake();
    }
    case Lifecycle::Step::Kind::kRelease:
      return DoRelease(step.id);
    default:
      return;
  }
}

absl::StatusOr<Lifecycle::Size> ModelManager::DoEstimate(const VersionId& id) {
  Lifecycle::Size size;
  for (int workers = 1; workers <= workers_; ++workers) {
    const auto estimate = loader_.EstimateBytes(RefOf(id), workers);
    if (!estimate.ok()) return estimate.status();
    size.bytes.push_back(*estimate);
  }
  size.memory_group = loader_.MemoryGroup(RefOf(id));
  return size;
}

absl::Status ModelManager::DoLoad(const Lifecycle::Step& step) {
  const Time begin = Clock::now();
  ServableLoader::LoadOptions load;
  {
    MutexLock lock(mutex_);
    load.stop = [this, stop = held_[step.id].stop] { return stop_ || *stop; };
    if (step.predecessor != 0) {
      const auto found = held_.find({step.id.name, step.predecessor});
      if (found != held_.end()) load.predecessor = found->second.servable;
    }
  }
  load.workers = step.workers;
  load.bytes_per_second = options_.load_bytes_per_second;
  load.progress = [this, id = step.id](double share) {
    MutexLock lock(mutex_);
    held_[id].progress = share;
  };
  load.warming = [this, id = step.id] {
    MutexLock lock(mutex_);
    held_[id].progress = 1;
    lifecycle_.Warming(id, Clock::now());
    Wake();
  };
  auto servable = Guarded([&] { return loader_.Load(RefOf(step.id), load); });
  load.predecessor.reset();
  if (!servable.ok()) return servable.status();
  if (*servable == nullptr) return absl::InternalError("the loader gave nothing");
  metrics_.load_seconds.Observe(Seconds(Clock::now() - begin));
  MutexLock lock(mutex_);
  Held& held = held_[step.id];
  held.memory = (*servable)->memory();
  held.servable = *std::move(servable);
  held.progress = 1;
  return absl::OkStatus();
}

void ModelManager::DoRelease(const VersionId& id) {
  std::shared_ptr<Servable> last;
  {
    MutexLock lock(mutex_);
    while (readers_ > 0) round_.Wait(mutex_);
    last = std::move(held_[id].servable);
    held_[id].released = Clock::now();
  }
  last.reset();  // perhaps much memory: without the lock
  MutexLock lock(mutex_);
  Wake();
}

void ModelManager::Report(const std::vector<Lifecycle::Transition>& transitions) {
  for (const Lifecycle::Transition& transition : transitions) {
    const Lifecycle::Version* version = lifecycle_.Find(transition.id);
    metrics_.Count(transition, version == nullptr ? absl::OkStatus() : version->error);
    const std::string number = absl::StrCat(transition.id.version);
    if (transition.to == v1::MODEL_STATE_FAILED) {
      LogWarning("model version failed", {{"model", transition.id.name},
                                          {"version", number},
                                          {"from", ToString(transition.from)},
                                          {"error", transition.message}});
    } else {
      LogInfo(
          "model version",
          {{"model", transition.id.name},
           {"version", number},
           {"from",
            transition.from == v1::MODEL_STATE_UNSPECIFIED ? "new" : ToString(transition.from)},
           {"to", transition.to == v1::MODEL_STATE_UNSPECIFIED ? "gone" : ToString(transition.to)},
           {"why", transition.message}});
    }
  }
}

absl::Status ModelManager::FirstFailure() {
  const bool serving = std::any_of(serving_.begin(), serving_.end(),
                                   [](const auto& each) { return each.second > 0; });
  if (!options_.must_start || serving || decided_look_ == 0 || decided_look_ != look_ ||
      !lifecycle_.Settled()) {
    return absl::OkStatus();
  }
  if (!look_error_.ok()) return look_error_;
  const auto& versions = lifecycle_.versions();
  for (auto each = versions.rbegin(); each != versions.rend(); ++each) {
    if (each->second.state == v1::MODEL_STATE_FAILED && lifecycle_.Wants(each->first)) {
      return each->second.error;
    }
  }
  return absl::NotFoundError(
      absl::StrCat(options_.root.string(), ": no version of ", absl::StrJoin(options_.names, ", "),
                   " is asked for by --version-policy ", options_.policy.ToString()));
}

}  // namespace llava
