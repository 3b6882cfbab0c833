#pragma once

// The workers of the LLM service: a common waiting room and one thread per device, which computes
// all of its running answers together, step after step. Knows neither gRPC nor LibTorch.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "server/llm/engine_metrics.h"
#include "server/llm/model_runner.h"
#include "server/llm/sequence.h"
#include "server/runtime/fair_queue.h"
#include "server/runtime/mutex.h"

namespace llava {

class EngineWorker;

// Thread-safe. Every job that Submit accepts gets exactly one Finished or Failed.
class LlmEngine {
 public:
  using Clock = GenerateJob::Clock;

  struct Options {
    int queue = 256;          // jobs waiting; beyond it Submit refuses
    int max_running = 32;     // answers in the making per worker
    int prefill_chunk = 512;  // prompt tokens computed in one step, of all prompts together
    uint64_t kv_bytes = uint64_t{4} << 30;  // keys and values per worker
  };

  // Starts the threads; each worker loads its model and warms it up. `on_all_failed` is called once
  // if the last worker dies later.
  LlmEngine(Options options, LoadedLanguage model, Metrics& metrics,
            std::function<void(const std::string& reason)> on_all_failed = {});
  ~LlmEngine();

  // Waits until every worker is ready. An error if one could not be: RESOURCE_EXHAUSTED when memory
  // was short.
  absl::Status WaitUntilReady();

  // Never blocks. UNAVAILABLE (with a time to retry after): the queue is full or the engine stops.
  // INVALID_ARGUMENT with both numbers: longer than a worker's keys and values can ever be.
  absl::Status Submit(GenerateJob job);

  // Fails everything that waits or runs, joins the threads.
  void Stop();

  const LanguageInfo& info() const { return info_; }
  // Image tokens of one picture; known once ready.
  int64_t image_tokens() const;
  int64_t kv_capacity_tokens() const { return kv_capacity_tokens_; }
  int waiting() const;
  int running() const { return running_; }

 private:
  friend class EngineWorker;

  void WorkerLoop(int worker, const RunnerFactory& factory);
  void WorkerDied(const std::string& reason);
  // Jobs that may join a worker with `load`, in order of turn; waits for one if `idle`. Drops
  // waiting jobs whose clients are gone or late.
  std::vector<GenerateJob> TakeJobs(struct Load& load, bool idle);
  void FailWaiting(const absl::Status& status);
  void FailJob(const GenerateJob& job, const absl::Status& status);

  const Options options_;
  const LanguageInfo info_;
  const int64_t kv_capacity_tokens_;
  const std::function<void(const std::string&)> on_all_failed_;
  EngineMetrics metrics_;
  std::atomic<int> running_ = 0;
  std::atomic<uint64_t> next_sequence_ = 1;
  std::atomic<bool> stopping_ = false;

  mutable Mutex mutex_;
  CondVar changed_;
  FairQueue<GenerateJob> waiting_ LLAVA_GUARDED_BY(mutex_);
  int64_t image_tokens_ LLAVA_GUARDED_BY(mutex_) = 0;
  int loading_ LLAVA_GUARDED_BY(mutex_);
  int ready_ LLAVA_GUARDED_BY(mutex_) = 0;
  int failed_ LLAVA_GUARDED_BY(mutex_) = 0;
  absl::Status load_status_ LLAVA_GUARDED_BY(mutex_);

  std::vector<std::thread> threads_;  // last
};

}  // namespace llava
