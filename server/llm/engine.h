#pragma once

// The workers of the LLM service: a common waiting room and one thread per device, which computes
// all of its running answers together, step after step. Knows neither gRPC nor LibTorch.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
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
    int prefill_chunk = 512;  // most prompt tokens computed in one step, of all prompts together
    // A step may take so many times as long for prompts as it would without (PromptBudget).
    double prefill_slowdown = 2.5;
    // A worker that died begins anew after this time, then after twice that, ...
    std::chrono::milliseconds respawn_delay{1000};
    int respawns = 5;  // ... so often in a row before it is given up
  };

  // Starts the threads; each worker loads its model and warms it up. `on_all_failed` is called once
  // when the last worker is given up later.
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
  int64_t kv_capacity_tokens() const { return kv_capacity_tokens_; }  // of a worker; once ready
  uint64_t weight_bytes() const;                                      // of all workers
  int waiting() const;
  int running() const { return running_; }

 private:
  friend class EngineWorker;

  void WorkerLoop(int worker, const RunnerFactory& factory);
  // Loads the model and works until the engine stops or the device fails: why, and how far it came.
  struct Life {
    absl::Status status;
    bool loaded = false;
    bool served = false;  // got through a step
  };
  Life Live(int worker, const RunnerFactory& factory);
  void ShowWorkers() LLAVA_REQUIRES(mutex_);
  void GiveUp(const std::string& reason);
  // The next job that suits the worker better than any other, in order of turn; waits for one if
  // `wait`. Drops waiting jobs whose clients are gone or late.
  std::optional<GenerateJob> TakeJob(const EngineWorker& worker, bool wait);
  std::optional<GenerateJob> PopFor(const EngineWorker& worker) LLAVA_REQUIRES(mutex_);
  // A job that was taken has ended.
  void Left(Clock::time_point received, const std::string& reason);
  void FailWaiting(const absl::Status& status);
  void FailJob(const GenerateJob& job, const absl::Status& status);

  const Options options_;
  const LanguageInfo info_;
  const std::function<void(const std::string&)> on_all_failed_;
  EngineMetrics metrics_;
  std::atomic<int> running_ = 0;
  std::atomic<int64_t> kv_capacity_tokens_ = 0;
  std::atomic<uint64_t> next_sequence_ = 1;
  std::atomic<bool> stopping_ = false;

  mutable Mutex mutex_;
  CondVar changed_;
  FairQueue<GenerateJob> waiting_ LLAVA_GUARDED_BY(mutex_);
  std::vector<const EngineWorker*> workers_ LLAVA_GUARDED_BY(mutex_);  // that work
  int64_t image_tokens_ LLAVA_GUARDED_BY(mutex_) = 0;
  uint64_t weight_bytes_ LLAVA_GUARDED_BY(mutex_) = 0;
  int loading_ LLAVA_GUARDED_BY(mutex_);
  int ready_ LLAVA_GUARDED_BY(mutex_) = 0;
  int failed_ LLAVA_GUARDED_BY(mutex_) = 0;
  absl::Status load_status_ LLAVA_GUARDED_BY(mutex_);

  std::vector<std::thread> threads_;  // last
};

}  // namespace llava
