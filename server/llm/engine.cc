#include "server/llm/engine.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/llm/engine_worker.h"
#include "server/llm/scheduler.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kRetryAfter{500};

}  // namespace

LlmEngine::LlmEngine(Options options, LoadedLanguage model, Metrics& metrics,
                     std::function<void(const std::string&)> on_all_failed)
    : options_(options),
      info_(std::move(model.info)),
      on_all_failed_(std::move(on_all_failed)),
      metrics_(metrics),
      loading_(info_.workers) {
  metrics_.ShowWorkers(loading_, 0, 0);
  for (int i = 0; i < info_.workers; ++i) {
    threads_.emplace_back([this, i, factory = model.factory] { WorkerLoop(i, factory); });
  }
}

LlmEngine::~LlmEngine() { Stop(); }

void LlmEngine::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  FailWaiting(OverloadedError("llm: the process is stopping", kRetryAfter));
}

absl::Status LlmEngine::WaitUntilReady() {
  MutexLock lock(mutex_);
  while (loading_ > 0) changed_.Wait(mutex_);
  return load_status_;
}

int64_t LlmEngine::image_tokens() const {
  MutexLock lock(mutex_);
  return image_tokens_;
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
  if (job.longest_tokens() > kv_capacity_tokens_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the request may need ", job.longest_tokens(), " tokens of keys and values (prompt ",
        job.prompt_tokens(), " + max_new_tokens ", job.stop.max_new_tokens, "); a worker has ",
        kv_capacity_tokens(), " (--kv-bytes). Ask for fewer max_new_tokens or shorten the prompt"));
  }
  std::vector<int32_t> ids = job.ids;
  ids.insert(ids.end(), job.resumed_ids.begin(), job.resumed_ids.end());
  job.rows = RowsOf(ids, job.feature_keys, image_tokens());
  MutexLock lock(mutex_);
  if (stopping_) return OverloadedError("llm: the process is stopping", kRetryAfter);
  if (loading_ == 0 && ready_ == 0) return absl::UnavailableError("llm: all workers failed");
  if (waiting_.size() >= static_cast<size_t>(options_.queue)) {
    return OverloadedError(
        absl::StrCat("llm: ", options_.queue, " requests are waiting already (--queue); try again"),
        kRetryAfter);
  }
  QueuePlace place = job.place;
  place.cost = static_cast<double>(job.longest_tokens());
  waiting_.Push(place, std::move(job));
  metrics_.requests_waiting.Set(static_cast<double>(waiting_.size()));
  changed_.NotifyAll();
  return absl::OkStatus();
}

std::optional<GenerateJob> LlmEngine::PopFor(const EngineWorker& worker) {
  bool passed = false;  // what has no room here yet is not overtaken
  return waiting_.PopFirst([&](const GenerateJob& job) {
    if (passed) return false;
    const double own = workers_.size() > 1 ? worker.Score(job) : 0;
    for (const EngineWorker* other : workers_) {
      if (other != &worker && other->Score(job) > own && other->CanTake(job)) return false;
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
    while (!stopping_) {
      const auto now = Clock::now();
      over = waiting_.RemoveIf([&](const GenerateJob& waiting) {
        return waiting.deadline <= now || waiting.sink->gone();
      });
      job = PopFor(worker);
      if (job || !wait || !over.empty()) break;
      changed_.Wait(mutex_);
    }
    if (job) {
      ++running_;
      metrics_.requests_running.Increment();
      if (workers_.size() > 1) changed_.NotifyAll();  // the next one may suit another
    }
    metrics_.requests_waiting.Set(static_cast<double>(waiting_.size()));
  }
  for (const GenerateJob& late : over) {
    FailJob(late, late.sink->gone()
                      ? absl::CancelledError("the client is gone")
                      : absl::DeadlineExceededError("the deadline passed in the queue"));
  }
  return job;
}

void LlmEngine::Left(Clock::time_point received, const std::string& reason) {
  --running_;
  metrics_.requests_running.Decrement();
  metrics_.FinishedBy(reason).Increment();
  metrics_.request_duration_seconds.Observe(
      std::chrono::duration<double>(Clock::now() - received).count());
  // Another worker may have left a job to the one that has less to do now.
  MutexLock lock(mutex_);
  if (workers_.size() > 1) changed_.NotifyAll();
}

void LlmEngine::FailWaiting(const absl::Status& status) {
  std::vector<GenerateJob> jobs;
  {
    MutexLock lock(mutex_);
    jobs = waiting_.RemoveIf([](const GenerateJob&) { return true; });
    metrics_.requests_waiting.Set(0);
  }
  for (const GenerateJob& job : jobs) FailJob(job, status);
}

void LlmEngine::FailJob(const GenerateJob& job, const absl::Status& status) {
  metrics_.request_duration_seconds.Observe(
      std::chrono::duration<double>(Clock::now() - job.received).count());
  job.sink->Failed(status);
}

void LlmEngine::ShowWorkers() { metrics_.ShowWorkers(loading_, ready_, failed_); }

LlmEngine::Life LlmEngine::Live(int worker, const RunnerFactory& factory) {
  Life life;
  std::unique_ptr<ModelRunner> runner;
  try {
    runner = factory(worker);
    SelfTest(*runner, info_);
  } catch (...) {
    life.status = FromException(std::current_exception());
    return life;
  }
  EngineWorker works(*this, *runner);
  {
    MutexLock lock(mutex_);
    image_tokens_ = runner->image_tokens();
    weight_bytes_ = runner->weight_bytes();
    const int64_t tokens = runner->num_blocks() * KvBlocks::kTokens;
    if (kv_capacity_tokens_ == 0 || tokens < kv_capacity_tokens_) kv_capacity_tokens_ = tokens;
    workers_.push_back(&works);
    --loading_;
    ++ready_;
    ShowWorkers();
    changed_.NotifyAll();
  }
  life.loaded = true;
  const std::string reason = works.Run();
  life.served = works.served();
  if (!reason.empty()) life.status = absl::UnavailableError(reason);
  MutexLock lock(mutex_);
  std::erase(workers_, &works);
  --ready_;
  ++loading_;  // unless it is given up
  ShowWorkers();
  changed_.NotifyAll();  // what was left to this one is for all
  return life;
}

void LlmEngine::WorkerLoop(int worker, const RunnerFactory& factory) {
  auto delay = options_.respawn_delay;
  bool first = true;
  for (int tries = 0;;) {
    const Life life = Live(worker, factory);
    if (stopping_) return;
    const std::string reason(life.status.message());
    if (first && !life.loaded) {
      MutexLock lock(mutex_);
      load_status_ = life.status;
      --loading_;
      ++failed_;
      ShowWorkers();
      changed_.NotifyAll();
      return;
    }
    first = false;
    if (life.served) {
      tries = 0;
      delay = options_.respawn_delay;
    }
    if (tries++ >= options_.respawns) return GiveUp(reason);
    LogError("worker died, it begins anew",
             {{"reason", reason}, {"in_ms", absl::StrCat(delay.count())}});
    metrics_.respawns.Increment();
    MutexLock lock(mutex_);
    const auto until = Clock::now() + delay;
    while (!stopping_ && Clock::now() < until) changed_.WaitUntil(mutex_, until);
    if (stopping_) return;
    delay *= 2;
  }
}

void LlmEngine::GiveUp(const std::string& reason) {
  LogError("worker died and is given up", {{"reason", reason}});
  bool last = false;
  {
    MutexLock lock(mutex_);
    --loading_;
    ++failed_;
    ShowWorkers();
    last = ready_ == 0 && loading_ == 0;
  }
  if (!last) return;
  if (on_all_failed_) on_all_failed_("all workers failed: " + reason);
  FailWaiting(absl::UnavailableError("llm: all workers failed"));
}

}  // namespace llava
