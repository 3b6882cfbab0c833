#include "server/llm/engine.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <numeric>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/llm/busy.h"
#include "server/llm/engine_worker.h"
#include "server/llm/scheduler.h"
#include "server/runtime/logging.h"
#include "server/runtime/seconds.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// Between two looks of who waits.
constexpr std::chrono::milliseconds kLookAgain{20};
// Of a worker that leaves jobs to others.
constexpr std::chrono::milliseconds kAskAgain{250};

LlmEngine::Places Complete(LlmEngine::Places places, int devices) {
  if (places.devices.empty()) {
    places.devices.resize(static_cast<size_t>(devices));
    std::iota(places.devices.begin(), places.devices.end(), 0);
  }
  if (places.workers == 0) places.workers = static_cast<int>(places.devices.size());
  while (places.turns.size() < static_cast<size_t>(devices)) {
    places.turns.push_back(std::make_shared<DeviceTurn>());
  }
  return places;
}

}  // namespace

LlmEngine::LlmEngine(Options options, LoadedLanguage model, Metrics& metrics, Places places)
    : options_(options),
      info_(std::move(model.info)),
      factory_(std::move(model.factory)),
      checked_(std::move(model.checked)),
      places_(Complete(std::move(places), info_.workers)),
      on_cpu_(absl::StartsWith(info_.device, "cpu")),
      metrics_(metrics),
      constraints_(*info_.tokenizer, metrics),
      slots_(places_.devices.size()) {
  try {
    MutexLock lock(mutex_);
    wanted_workers_ = places_.workers;
    for (int i = 0; i < wanted_workers_; ++i) StartWorker(i);
    watcher_ = options_.start_thread([this] { WatchAll(); });
  } catch (...) {
    Stop();
    throw;
  }
}

LlmEngine::~LlmEngine() {
  Stop();
  std::vector<Hung> hung;
  {
    MutexLock lock(mutex_);
    hung.swap(hung_);
  }
  for (Hung& left : hung) left.thread.join();
}

void LlmEngine::Stop(Clock::duration patience) {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    const auto now = Clock::now();
    if (patience < Clock::time_point::max() - now) patient_until_ = now + patience;
    watch_changed_.NotifyAll();
    for (Slot& slot : slots_) slot.watch->stop = true;
    changed_.NotifyAll();
    // Its own thread may change as long as a worker is alive.
    const auto ended = [](const Slot& slot) { return !slot.alive; };
    while (!std::all_of(slots_.begin(), slots_.end(), ended)) changed_.Wait(mutex_);
    watching_ = false;
    watch_changed_.NotifyAll();
  }
  for (Slot& slot : slots_) {
    if (slot.thread.joinable()) slot.thread.join();
  }
  if (watcher_.joinable()) watcher_.join();
  FailWaiting(LlmBusyError("the process is stopping"));
}

template <typename Done>
bool LlmEngine::WaitFor(const Done& done, const Stopped& give_up) {
  while (true) {
    {
      MutexLock lock(mutex_);
      if (done()) return true;
      if (give_up) {
        changed_.WaitUntil(mutex_, Clock::now() + kLookAgain);
      } else {
        changed_.Wait(mutex_);
      }
      if (done()) return true;
    }
    if (give_up && give_up()) return false;
  }
}

double LlmEngine::LoadedShare() const {
  double sum = 0;
  for (int i = 0; i < wanted_workers_; ++i) sum += slots_[static_cast<size_t>(i)].watch->share;
  return sum / wanted_workers_;
}

absl::Status LlmEngine::WaitUntilReady(const Stopped& give_up,
                                       const std::function<void(double)>& progress) {
  const auto look = [&] {
    if (progress) {
      double share = 0;
      {
        MutexLock lock(mutex_);
        share = LoadedShare();
      }
      progress(share);
    }
    return give_up && give_up();
  };
  if (!WaitFor([this] { return loading_ == 0; }, look)) {
    return absl::CancelledError("the loading was stopped");
  }
  MutexLock lock(mutex_);
  return load_status_;
}

void LlmEngine::Prewarm(std::vector<WarmPrompt> prompts, Clock::time_point until,
                        const Stopped& give_up) {
  {
    MutexLock lock(mutex_);
    warm_stopped_ = false;
    warm_left_ = prompts.size();
    warm_.assign(std::make_move_iterator(prompts.begin()), std::make_move_iterator(prompts.end()));
    changed_.NotifyAll();
  }
  const auto done = [this] { return warm_left_ == 0 || ready_ == 0; };
  const auto late = [&] { return Clock::now() >= until || (give_up && give_up()); };
  if (WaitFor(done, late)) return;
  {
    MutexLock lock(mutex_);
    warm_stopped_ = true;
    warm_left_ -= warm_.size();
    warm_.clear();
  }
  WaitFor(done, {});  // for the piece at hand
}

std::optional<WarmPrompt> LlmEngine::TakeWarm() {
  MutexLock lock(mutex_);
  if (warm_.empty()) return std::nullopt;
  WarmPrompt prompt = std::move(warm_.front());
  warm_.pop_front();
  return prompt;
}

void LlmEngine::WarmDone() {
  MutexLock lock(mutex_);
  --warm_left_;
  changed_.NotifyAll();
}

absl::Status LlmEngine::SetWorkers(int n, const Stopped& give_up) {
  const MutexLock one_at_a_time(resizing_);
  const int most = static_cast<int>(slots_.size());
  if (n < 1 || n > most) {
    return absl::InvalidArgumentError(
        absl::StrCat(n, " workers are asked for, there are places for 1 to ", most));
  }
  int before = 0;
  {
    MutexLock lock(mutex_);
    before = wanted_workers_;
    wanted_workers_ = n;
    load_status_ = absl::OkStatus();
    ShowWorkers();
    changed_.NotifyAll();
  }
  const auto ended = [this, most](int from) {
    for (int i = from; i < most; ++i) {
      if (slots_[static_cast<size_t>(i)].alive) return false;
    }
    return true;
  };
  const absl::Status stopped = absl::CancelledError("the change of workers was stopped");
  if (n <= before) {
    if (WaitFor([&] { return ended(n); }, give_up)) return absl::OkStatus();
    MutexLock lock(mutex_);
    const auto stays = [this](int i) {
      const Slot& slot = slots_[static_cast<size_t>(i)];
      return slot.alive && !slot.ending;
    };
    while (wanted_workers_ < before && stays(wanted_workers_)) ++wanted_workers_;
    ShowWorkers();
    changed_.NotifyAll();
    return stopped;
  }
  absl::Status status;
  try {
    for (int i = before; i < n; ++i) {
      std::thread& thread = slots_[static_cast<size_t>(i)].thread;
      if (thread.joinable()) thread.join();  // it has ended
      MutexLock lock(mutex_);
      StartWorker(i);
    }
    status = WaitUntilReady(give_up);
  } catch (const std::system_error&) {
    status = FromException(std::current_exception());
  }
  if (status.ok()) return status;
  {
    MutexLock lock(mutex_);
    wanted_workers_ = before;
    for (int i = before; i < n; ++i) slots_[static_cast<size_t>(i)].watch->stop = true;
    ShowWorkers();
    changed_.NotifyAll();
  }
  WaitFor([&] { return ended(before); }, {});
  return status;
}

int LlmEngine::workers() const {
  MutexLock lock(mutex_);
  return wanted_workers_;
}

double LlmEngine::self_test_drift() const {
  MutexLock lock(mutex_);
  return drift_;
}

std::string LlmEngine::failure() const {
  MutexLock lock(mutex_);
  return failure_;
}

std::string LlmEngine::given_up() const {
  MutexLock lock(mutex_);
  return given_up_;
}

std::string LlmEngine::load_hung() const {
  MutexLock lock(mutex_);
  return load_hung_;
}

bool LlmEngine::retires(int worker) const {
  MutexLock lock(mutex_);
  return Retires(worker);
}

int LlmEngine::waiting() const {
  MutexLock lock(mutex_);
  return static_cast<int>(waiting_.size());
}

uint64_t LlmEngine::weight_bytes() const {
  MutexLock lock(mutex_);
  return weight_bytes_ * static_cast<uint64_t>(ready_);
}

absl::Status LlmEngine::Submit(GenerateJob job) {
  const std::vector<int32_t>& resumed = job.resumed_ids;
  if (job.longest_tokens() > kv_capacity_tokens_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the request may need ", job.longest_tokens(), " tokens of keys and values (prompt ",
        job.prompt_tokens(), " + max_new_tokens ", job.stop.max_new_tokens,
        resumed.empty() ? "" : absl::StrCat(", or continue_from ", resumed.size()),
        "); a worker has ", kv_capacity_tokens(),
        " (--kv-bytes). Ask for fewer max_new_tokens or shorten the prompt"));
  }
  std::vector<int32_t> ids = job.ids;
  ids.insert(ids.end(), resumed.begin(), resumed.end());
  job.rows = RowsOf(ids, job.feature_keys, job.picture_tokens);
  MutexLock lock(mutex_);
  if (stopping_) return LlmBusyError("the process is stopping");
  if (loading_ == 0 && ready_ == 0) return absl::UnavailableError("llm: all workers failed");
  if (waiting_.size() >= static_cast<size_t>(options_.queue)) {
    return LlmBusyError(
        absl::StrCat(options_.queue, " requests are waiting already (--queue); try again"));
  }
  QueuePlace place = job.place;
  place.cost = static_cast<double>(job.longest_tokens());
  waiting_.Push(place, std::move(job));
  metrics_.ShowWaiting(waiting_.size());
  changed_.NotifyAll();
  return absl::OkStatus();
}

std::optional<GenerateJob> LlmEngine::PopFor(const EngineWorker& worker) {
  bool passed = false;  // what has no room here yet is not overtaken
  return waiting_.PopFirst([&](const GenerateJob& job) {
    if (passed) return false;
    const double own = workers_.size() > 1 ? worker.Score(job) : 0;
    for (const EngineWorker* other : workers_) {
      if (other != &worker && !Retires(other->number()) && other->Score(job) > own &&
          other->CanTake(job)) {
        return false;
      }
    }
    passed = !worker.CanTake(job);
    return !passed;
  });
}

std::optional<GenerateJob> LlmEngine::TakeJob(const EngineWorker& worker, bool wait) {
  std::optional<GenerateJob> job;
  std::vector<GenerateJob> over;
  {
    MutexLock lock(mutex_);
    while (!Retires(worker.number())) {
      over = RemoveOver();
      job = PopFor(worker);
      if (job || !wait || !over.empty() || !warm_.empty()) break;
      if (waiting_.empty()) {
        changed_.Wait(mutex_);
      } else {  // left to another, which may hang by then
        changed_.WaitUntil(mutex_, Clock::now() + kAskAgain);
      }
    }
    if (job) {
      ++running_;
      metrics_.requests_running.Increment();
      if (workers_.size() > 1) changed_.NotifyAll();  // the next one may suit another
    }
    metrics_.ShowWaiting(waiting_.size());
  }
  FailOver(over);
  return job;
}

std::vector<GenerateJob> LlmEngine::RemoveOver() {
  const auto now = Clock::now();
  return waiting_.RemoveIf(
      [&](const GenerateJob& waiting) { return waiting.deadline <= now || waiting.sink->gone(); });
}

void LlmEngine::FailOver(const std::vector<GenerateJob>& over) {
  for (const GenerateJob& job : over) {
    FailJob(job, job.sink->gone()
                     ? absl::CancelledError("the client is gone")
                     : absl::DeadlineExceededError("the deadline passed in the queue"));
  }
}

void LlmEngine::Left(Clock::time_point received, const std::string& reason) {
  --running_;
  metrics_.requests_running.Decrement();
  metrics_.FinishedBy(reason).Increment();
  metrics_.request_duration_seconds.Observe(Seconds(Clock::now() - received));
  // Another worker may have left a job to the one that has less to do now.
  MutexLock lock(mutex_);
  if (workers_.size() > 1) changed_.NotifyAll();
}

void LlmEngine::FailWaiting(const absl::Status& status) {
  std::vector<GenerateJob> jobs;
  {
    MutexLock lock(mutex_);
    jobs = waiting_.RemoveIf([](const GenerateJob&) { return true; });
    metrics_.ShowWaiting(0);
  }
  for (const GenerateJob& job : jobs) FailJob(job, status);
}

void LlmEngine::FailJob(const GenerateJob& job, const absl::Status& status) {
  metrics_.request_duration_seconds.Observe(Seconds(Clock::now() - job.received));
  job.sink->Failed(status);
}

}  // namespace llava
