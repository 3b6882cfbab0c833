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
      kv_capacity_tokens_(static_cast<int64_t>(options.kv_bytes) / info_.kv_bytes_per_token),
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

absl::Status LlmEngine::Submit(GenerateJob job) {
  if (job.longest_tokens() > kv_capacity_tokens_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the request may need ", job.longest_tokens(), " tokens of keys and values (prompt ",
        job.prompt_tokens(), " + max_new_tokens ", job.stop.max_new_tokens, "); a worker has ",
        kv_capacity_tokens_, " (--kv-bytes). Ask for fewer max_new_tokens or shorten the prompt"));
  }
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

std::vector<GenerateJob> LlmEngine::TakeJobs(Load& load, bool idle) {
  const Capacity capacity{options_.max_running, kv_capacity_tokens_};
  std::vector<GenerateJob> jobs, over;
  {
    MutexLock lock(mutex_);
    while (idle && waiting_.empty() && !stopping_) changed_.Wait(mutex_);
    if (stopping_) return jobs;
    const auto now = Clock::now();
    over = waiting_.RemoveIf(
        [&](const GenerateJob& job) { return job.deadline <= now || job.sink->gone(); });
    while (const GenerateJob* front = waiting_.Front()) {
      if (!CanJoin(front->longest_tokens(), load, capacity)) break;
      jobs.push_back(*waiting_.PopFront());
      ++load.running;
      load.kv_tokens += jobs.back().longest_tokens();
      ++running_;
      metrics_.requests_running.Increment();
    }
    metrics_.requests_waiting.Set(static_cast<double>(waiting_.size()));
  }
  for (const GenerateJob& job : over) {
    FailJob(job, job.sink->gone()
                     ? absl::CancelledError("the client is gone")
                     : absl::DeadlineExceededError("the deadline passed in the queue"));
  }
  return jobs;
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

void LlmEngine::WorkerLoop(int worker, const RunnerFactory& factory) {
  std::unique_ptr<ModelRunner> runner;
  absl::Status status;
  try {
    runner = factory(worker);
    SelfTest(*runner, info_);
  } catch (...) {
    status = FromException(std::current_exception());
  }
  {
    MutexLock lock(mutex_);
    --loading_;
    ++(status.ok() ? ready_ : failed_);
    if (status.ok()) {
      image_tokens_ = runner->image_tokens();
    } else {
      load_status_ = status;
    }
    metrics_.ShowWorkers(loading_, ready_, failed_);
    changed_.NotifyAll();
  }
  if (!status.ok()) return;
  const std::string reason = EngineWorker(*this, *runner).Run();
  if (!reason.empty()) WorkerDied(reason);
}

void LlmEngine::WorkerDied(const std::string& reason) {
  LogError("worker died", {{"reason", reason}});
  bool last = false;
  {
    MutexLock lock(mutex_);
    --ready_;
    ++failed_;
    metrics_.ShowWorkers(loading_, ready_, failed_);
    last = ready_ == 0;
  }
  if (!last) return;
  if (on_all_failed_) on_all_failed_("all workers failed: " + reason);
  FailWaiting(absl::UnavailableError("llm: all workers failed"));
}

}  // namespace llava
