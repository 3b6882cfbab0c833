#include "server/vision/worker_pool.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/device/load_failure.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kStopPoll{50};

prometheus::Gauge& Workers(Metrics& metrics, const std::string& state) {
  return metrics.Gauge("llava_vision_workers", "Workers by state", {{"state", state}});
}

}  // namespace

WorkerPool::Series::Series(Metrics& metrics)
    : loading(Workers(metrics, "loading")),
      ready(Workers(metrics, "ready")),
      failed(Workers(metrics, "failed")),
      respawns(
          metrics.Counter("llava_vision_worker_respawns_total", "Dead workers that began anew")) {}

prometheus::Gauge& WorkerPool::Series::Of(State state) {
  return state == State::kLoading ? loading : state == State::kReady ? ready : failed;
}

WorkerPool::WorkerPool(Options options, Parts parts, Metrics& metrics)
    : options_(options),
      parts_(std::move(parts)),
      series_(metrics),
      slots_(static_cast<size_t>(options.workers)) {
  const int first = options_.first_workers;
  MutexLock resize(resize_mutex_);
  Begin(0, first > 0 ? std::min(first, options_.workers) : options_.workers);
}

WorkerPool::~WorkerPool() { Drain(); }

void WorkerPool::Drain() {
  draining_ = true;
  MutexLock resize(resize_mutex_);
  {
    MutexLock lock(mutex_);
    changed_.NotifyAll();
  }
  JoinAndClear(0, static_cast<int>(slots_.size()));
}

void WorkerPool::Begin(int from, int to) {
  {
    MutexLock lock(mutex_);
    wanted_ = to;
    for (int i = from; i < to; ++i) {
      Enter(i, State::kLoading);
      slots_[static_cast<size_t>(i)].running = true;
      slots_[static_cast<size_t>(i)].loading_since = CondVar::Clock::now();
    }
  }
  for (int i = from; i < to; ++i) {
    slots_[static_cast<size_t>(i)].thread = std::thread([this, i] {
      Live(i);
      MutexLock lock(mutex_);
      slots_[static_cast<size_t>(i)].running = false;
      changed_.NotifyAll();
    });
  }
}

bool WorkerPool::End(int from, int to, const std::function<bool()>& stop) {
  {
    MutexLock lock(mutex_);
    wanted_ = std::min<int>(wanted_, from);
    changed_.NotifyAll();
  }
  parts_.wake();
  {
    MutexLock lock(mutex_);
    while (AnyRuns(from, to)) {
      if (stop && stop()) return false;
      changed_.WaitUntil(mutex_, CondVar::Clock::now() + kStopPoll);
    }
  }
  JoinAndClear(from, to);
  return true;
}

void WorkerPool::JoinAndClear(int from, int to) {
  for (int i = from; i < to; ++i) {
    std::thread& thread = slots_[static_cast<size_t>(i)].thread;
    if (thread.joinable()) thread.join();
  }
  MutexLock lock(mutex_);
  for (int i = from; i < to; ++i) Enter(i, State::kNone);
}

absl::Status WorkerPool::WaitUntilReady(const std::function<bool()>& stop) {
  MutexLock lock(mutex_);
  while (Count(State::kLoading) > 0) {
    if (stop && stop()) return absl::CancelledError("told to stop while workers were loading");
    changed_.WaitUntil(mutex_, CondVar::Clock::now() + kStopPoll);
  }
  return load_status_;
}

absl::Status WorkerPool::SetWorkers(int n, const std::function<bool()>& stop) {
  MutexLock resize(resize_mutex_);
  if (draining_) return absl::UnavailableError("the workers are ending");
  const int before = wanted_;
  const int after = std::clamp(n, 1, static_cast<int>(slots_.size()));
  if (after < before) {
    if (!End(after, before, stop)) return absl::CancelledError("told to stop before workers ended");
    DeclareFailureIfNoneIsLeft("those that are left failed before");
  }
  if (after <= before) return absl::OkStatus();
  {
    MutexLock lock(mutex_);
    if (AnyRuns(before, after)) {
      return absl::UnavailableError("a worker that was given up before has not ended");
    }
    load_status_ = absl::OkStatus();
  }
  JoinAndClear(before, after);
  Begin(before, after);
  absl::Status status = WaitUntilReady(stop);
  if (!status.ok()) {
    End(before, after, stop);
    MutexLock lock(mutex_);
    load_status_ = absl::OkStatus();  // those that were there are as ready as before
  }
  return status;
}

bool WorkerPool::any_ready() const {
  MutexLock lock(mutex_);
  return Count(State::kReady) > 0;
}

bool WorkerPool::LoadsSince(CondVar::Clock::time_point time) const {
  MutexLock lock(mutex_);
  return AnyLoads(time);
}

bool WorkerPool::EndLoads(CondVar::Clock::time_point until) {
  MutexLock lock(mutex_);
  draining_ = true;
  changed_.NotifyAll();
  while (AnyLoads(CondVar::Clock::time_point::max())) {
    if (!changed_.WaitUntil(mutex_, until)) return !AnyLoads(CondVar::Clock::time_point::max());
  }
  return true;
}

bool WorkerPool::AnyRuns(int from, int to) const {
  return std::any_of(slots_.begin() + from, slots_.begin() + to,
                     [](const Slot& slot) { return slot.running; });
}

bool WorkerPool::AnyLoads(CondVar::Clock::time_point since_before) const {
  return std::any_of(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return slot.loading_since && *slot.loading_since < since_before;
  });
}

std::string WorkerPool::failure() const {
  MutexLock lock(mutex_);
  return failure_;
}

std::string WorkerPool::given_up() const {
  MutexLock lock(mutex_);
  return given_up_;
}

double WorkerPool::self_test_drift() const {
  MutexLock lock(mutex_);
  return drift_;
}

void WorkerPool::Enter(int worker, State state) {
  State& now = slots_[static_cast<size_t>(worker)].state;
  if (now == state) return;
  if (now != State::kNone) series_.Of(now).Decrement();
  if (state != State::kNone) series_.Of(state).Increment();
  now = state;
  changed_.NotifyAll();
}

int WorkerPool::Count(State state) const {
  return static_cast<int>(
      std::count_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.state == state; }));
}

WorkerPool::Ended WorkerPool::LiveOnce(int worker, bool& loaded, absl::Status& status) {
  std::unique_ptr<PictureEncoder> encoder;
  try {
    encoder = parts_.factory(worker);
    parts_.check(*encoder);
  } catch (const LoadFailure& failure) {
    status = failure.status;
  } catch (...) {
    status = FromException(std::current_exception());
  }
  {
    MutexLock lock(mutex_);
    slots_[static_cast<size_t>(worker)].loading_since.reset();
    changed_.NotifyAll();
  }
  if (!status.ok()) return {status.ToString()};
  loaded = true;
  {
    MutexLock lock(mutex_);
    drift_ = std::max(drift_, encoder->self_test_drift());
    Enter(worker, State::kReady);
  }
  return parts_.serve(*encoder, [this, worker] { return !Wanted(worker); });
}

void WorkerPool::Live(int worker) {
  auto delay = options_.respawn_delay;
  bool ever_loaded = false;
  for (int tries = 0;;) {
    absl::Status status;
    const Ended ended = LiveOnce(worker, ever_loaded, status);
    if (ended.reason.empty() || (ever_loaded && !MayBeginAnew(worker))) return;
    if (!ever_loaded) {  // whoever waits for this worker decides what now
      MutexLock lock(mutex_);
      if (load_status_.ok()) load_status_ = status;
      return Enter(worker, State::kFailed);
    }
    if (ended.served) {
      tries = 0;
      delay = options_.respawn_delay;
    }
    if (tries++ >= options_.respawns || absl::IsFailedPrecondition(status)) {
      return GiveUp(worker, ended.reason);
    }
    LogWorker("worker died, it begins anew", worker,
              absl::StrCat(ended.reason, "; in ", delay.count(), " ms"));
    series_.respawns.Increment();
    {
      MutexLock lock(mutex_);
      Enter(worker, State::kLoading);
    }
    SleepBefore(worker, delay);
    {
      MutexLock lock(mutex_);
      if (!MayBeginAnew(worker)) return;
      slots_[static_cast<size_t>(worker)].loading_since = CondVar::Clock::now();
    }
    delay *= 2;
  }
}

void WorkerPool::SleepBefore(int worker, std::chrono::milliseconds time) {
  const auto until = CondVar::Clock::now() + time;
  MutexLock lock(mutex_);
  while (MayBeginAnew(worker) && CondVar::Clock::now() < until) changed_.WaitUntil(mutex_, until);
}

void WorkerPool::LogWorker(std::string_view message, int worker, const std::string& why) const {
  LogError(message, {{"tower", parts_.tower},
                     {"worker", absl::StrCat(worker)},
                     {"device", parts_.device},
                     {"reason", why}});
}

void WorkerPool::GiveUp(int worker, const std::string& reason) {
  LogWorker("worker died and is given up", worker, reason);
  {
    MutexLock lock(mutex_);
    given_up_ = reason;
    Enter(worker, State::kFailed);
  }
  DeclareFailureIfNoneIsLeft(reason);
}

void WorkerPool::DeclareFailureIfNoneIsLeft(const std::string& reason) {
  {
    MutexLock lock(mutex_);
    if (Count(State::kReady) + Count(State::kLoading) > 0) return;
    failure_ = "all workers failed: " + reason;
  }
  parts_.on_all_failed(reason);
}

}  // namespace llava
