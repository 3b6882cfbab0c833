#pragma once

// The workers of one version: a common waiting room and one thread per device, which computes all
// of its running answers together, step after step. Knows neither gRPC nor LibTorch.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "server/llm/constraint_cache.h"
#include "server/llm/device_turn.h"
#include "server/llm/engine_metrics.h"
#include "server/llm/model_runner.h"
#include "server/llm/sequence.h"
#include "server/llm/step_watch.h"
#include "server/llm/thread_start.h"
#include "server/runtime/fair_queue.h"
#include "server/runtime/mutex.h"

namespace llava {

class EngineWorker;

// A prompt whose keys and values are computed before anybody asks.
struct WarmPrompt {
  std::vector<int32_t> ids;  // pictures as kImageToken
  std::vector<std::shared_ptr<const StoredFeatures>> features;
  std::vector<std::string> feature_keys;
  std::vector<int64_t> picture_tokens;  // of each
  std::string cache_salt;
};

// Thread-safe. Every job that Submit accepts gets exactly one Finished or Failed.
class LlmEngine {
 public:
  using Clock = GenerateJob::Clock;

  struct Options {
    int queue = 256;          // jobs waiting; beyond it Submit refuses
    int max_running = 32;     // answers in the making per worker
    int prefill_chunk = 512;  // most prompt tokens computed in one step, of all prompts together
    // A step may take so many times as long for prompts as it would without (LimitPrompts).
    double prefill_slowdown = 2.9;
    // A worker that hangs in a call to its device for longer is given up; 0: never.
    std::chrono::milliseconds step_limit{0};
    // So is one whose reading of weights does not go on for longer; 0: never.
    std::chrono::milliseconds load_limit{0};
    // A worker that died begins anew after this time, then after twice that, ...
    std::chrono::milliseconds respawn_delay{1000};
    int respawns = 5;                           // ... so often in a row before it is given up
    ThreadStart start_thread = StartStdThread;  // replaced by tests
  };

  // Where workers live.
  struct Places {
    std::vector<int> devices = {};  // in the order in which workers take them; empty: as they are
    int workers = 0;                // to begin with; 0: one for each device
    std::vector<std::shared_ptr<DeviceTurn>> turns = {};  // of each device; empty: all to itself
  };
  using Stopped = std::function<bool()>;  // polled, true: give up; none: never

  // Starts the threads; each worker loads its model, warms it up and tries its self-test. Throws
  // std::system_error if a thread cannot be started.
  LlmEngine(Options options, LoadedLanguage model, Metrics& metrics, Places places);
  ~LlmEngine();

  // Waits until every worker is ready. An error if one could not be: RESOURCE_EXHAUSTED when memory
  // was short. CANCELLED: `give_up` said so; nothing but Stop makes sense then. `progress`, if any,
  // is told meanwhile how much of the reading is done.
  absl::Status WaitUntilReady(const Stopped& give_up = {},
                              const std::function<void(double share)>& progress = {});

  // Computes prompts ahead while no job waits, in this order, and returns when that is done,
  // `until` has come or `give_up` says so. What does not fit is left out.
  void Prewarm(std::vector<WarmPrompt> prompts, Clock::time_point until,
               const Stopped& give_up = {});

  // Gives up the last workers, each when its answers have ended, or adds some; waits for that.
  // 1 <= n <= places. CANCELLED: `give_up` said so; what was not done yet is not done. Other errors
  // as WaitUntilReady, or RESOURCE_EXHAUSTED: no thread was to be had; nothing has changed then.
  absl::Status SetWorkers(int n, const Stopped& give_up = {});

  // Never blocks. UNAVAILABLE (with a time to retry after): the queue is full or the engine stops.
  // INVALID_ARGUMENT with both numbers: longer than a worker's keys and values can ever be.
  absl::Status Submit(GenerateJob job);

  // Fails everything that waits or runs, joins the threads but for those that were given up: the
  // destructor waits for them. So are those whose call is not over after `patience`.
  void Stop(Clock::duration patience = Clock::duration::max());
  // A thread that was given up has not come back yet. After Stop only the end of the process helps.
  bool hangs() const;

  const LanguageInfo& info() const { return info_; }
  // For GenerateJob::matcher.
  ConstraintCache& constraints() { return constraints_; }
  int64_t kv_capacity_tokens() const { return kv_capacity_tokens_; }  // of a worker; once ready
  uint64_t weight_bytes() const;                                      // of all workers
  int waiting() const;
  int running() const { return running_; }
  int workers() const;  // that are meant to be
  const std::vector<int>& devices() const { return places_.devices; }
  // Largest deviation from the self-test's reference on any worker; negative: there is none.
  double self_test_drift() const;
  uint64_t nan_outputs() const { return nan_outputs_; }  // answers that ended for it
  // Why all workers were given up; empty: one works or may yet.
  std::string failure() const;
  // Why one was, of however many; empty: none. On a GPU that means that the device is lost.
  std::string given_up() const;
  // Why one was given up while it read its model, on a GPU: that, or the storage, hangs. Empty:
  // none.
  std::string load_hung() const;

 private:
  friend class EngineWorker;

  // What became of a worker from loading the model until the engine stopped or the device failed.
  struct Life {
    absl::Status status;
    bool loaded = false;
    bool served = false;    // got through a step; see Replace
    bool given_up = false;  // another thread has taken the place
  };
  // Both throw std::system_error if a thread cannot be started; nothing has begun then.
  void StartWorker(int worker) LLAVA_REQUIRES(mutex_);
  // `before`: how the thread ended whose place this one takes.
  void StartThread(int worker, std::optional<Life> before) LLAVA_REQUIRES(mutex_);
  // Life after life.
  void WorkerLoop(int worker, std::optional<Life> before);
  // An error of a worker, with what it works for and where.
  void LogWorker(std::string_view message, int worker, const std::string& why) const;
  // Its thread comes to its end; in the block that decides so, lest it is wanted in between.
  void End(int worker) LLAVA_REQUIRES(mutex_);
  Life Live(int worker);
  // Whether no life may follow this one, because nothing is wanted of the worker any more or its
  // first brought no model; it has ended then.
  bool EndsAfter(int worker, const Life& life);
  // Gives up workers that hang and drops jobs that nobody waits for any more, until Stop.
  void WatchAll();
  // What a call of a worker may take now, and why it was given up beyond that.
  StepWatch::Limits LimitsNow() const LLAVA_REQUIRES(mutex_);
  std::string WhyGivenUp(bool loads) const;
  // Its thread hangs, in loading its model if `loads`: answers its jobs, and lets another one take
  // its place unless that would hang, too.
  void Replace(int worker, bool loads);
  void ShowWorkers() LLAVA_REQUIRES(mutex_);
  // No more jobs for it: the engine stops, or gives this worker up.
  bool Retires(int worker) const LLAVA_REQUIRES(mutex_) {
    return stopping_ || worker >= wanted_workers_;
  }
  bool retires(int worker) const;
  // Waits for `done`, which is asked with the lock, `give_up` without. False: it said so.
  template <typename Done>
  bool WaitFor(const Done& done, const Stopped& give_up);
  double LoadedShare() const LLAVA_REQUIRES(mutex_);
  void GiveUp(int worker, const std::string& reason);
  // Waiting jobs whose clients are gone or late, out of the queue, and what they are told.
  std::vector<GenerateJob> RemoveOver() LLAVA_REQUIRES(mutex_);
  void FailOver(const std::vector<GenerateJob>& over);
  // The next job that suits the worker better than any other, in order of turn; waits for one, for
  // a prompt to compute ahead or for the worker's end if `wait`. Drops jobs as WatchAll does.
  std::optional<GenerateJob> TakeJob(const EngineWorker& worker, bool wait);
  // The next prompt to compute ahead, and the account of it.
  std::optional<WarmPrompt> TakeWarm();
  void WarmDone();
  std::optional<GenerateJob> PopFor(const EngineWorker& worker) LLAVA_REQUIRES(mutex_);
  // A job that was taken has ended.
  void Left(Clock::time_point received, const std::string& reason);
  void FailWaiting(const absl::Status& status);
  void FailJob(const GenerateJob& job, const absl::Status& status);

  // A worker's place.
  struct Slot {
    std::thread thread;
    bool alive = false;   // its thread has not come to its end
    bool ending = false;  // but will, whoever is wanted: it gives up its model
    std::unique_ptr<LoadWatch> watch = std::make_unique<LoadWatch>();
    std::shared_ptr<StepWatch> steps = std::make_shared<StepWatch>();  // of the thread
    int tries = 0;                       // lives in a row without a step
    std::chrono::milliseconds delay{0};  // before the next
    bool first = true;                   // none has loaded yet
    bool failed = false;                 // could not load, or was given up
  };
  // A thread that was given up.
  struct Hung {
    std::thread thread;
    std::shared_ptr<StepWatch> steps;
    int worker;
  };

  const Options options_;
  const LanguageInfo info_;
  const RunnerFactory factory_;
  const std::shared_ptr<const std::atomic<double>> checked_;  // of LoadedLanguage
  const Places places_;
  const bool on_cpu_;
  EngineMetrics metrics_;
  ConstraintCache constraints_;
  std::atomic<uint64_t> nan_outputs_ = 0;
  std::atomic<bool> warm_stopped_ = false;
  std::atomic<int> running_ = 0;
  std::atomic<int64_t> kv_capacity_tokens_ = 0;
  std::atomic<uint64_t> next_sequence_ = 1;
  std::atomic<bool> stopping_ = false;

  Mutex resizing_;       // one SetWorkers at a time
  mutable Mutex mutex_;  // taken behind that
  CondVar changed_;
  FairQueue<GenerateJob> waiting_ LLAVA_GUARDED_BY(mutex_);
  std::vector<EngineWorker*> workers_ LLAVA_GUARDED_BY(mutex_);  // that work
  uint64_t weight_bytes_ LLAVA_GUARDED_BY(mutex_) = 0;
  double drift_ LLAVA_GUARDED_BY(mutex_) = -1;
  std::string failure_ LLAVA_GUARDED_BY(mutex_);
  std::string given_up_ LLAVA_GUARDED_BY(mutex_);
  std::string load_hung_ LLAVA_GUARDED_BY(mutex_);
  std::deque<WarmPrompt> warm_ LLAVA_GUARDED_BY(mutex_);
  size_t warm_left_ LLAVA_GUARDED_BY(mutex_) = 0;  // that wait or are being computed
  int wanted_workers_ LLAVA_GUARDED_BY(mutex_) = 0;
  int loading_ LLAVA_GUARDED_BY(mutex_) = 0;
  int ready_ LLAVA_GUARDED_BY(mutex_) = 0;
  absl::Status load_status_ LLAVA_GUARDED_BY(mutex_);
  std::vector<Hung> hung_ LLAVA_GUARDED_BY(mutex_);
  bool watching_ LLAVA_GUARDED_BY(mutex_) = true;
  Clock::time_point patient_until_ LLAVA_GUARDED_BY(mutex_) = Clock::time_point::max();  // Stop
  CondVar watch_changed_;

  std::vector<Slot> slots_;  // guarded but for the joining
  std::thread watcher_;      // last
};

}  // namespace llava
