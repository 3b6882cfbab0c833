#pragma once

// The workers of a tower: threads that each own an encoder, load it, serve with it, and begin anew
// when their device is lost.

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/vision/picture_encoder.h"

namespace llava {

// Thread-safe.
class WorkerPool {
 public:
  struct Options {
    int workers = 1;                                // at most
    int first_workers = 0;                          // that begin now; 0: all
    std::chrono::milliseconds respawn_delay{1000};  // of a worker that died, doubled each time
    // ... so often in a row before it is given up. At once, when its device is of no use any more.
    int respawns = 5;
  };
  // How a worker's service ended. `reason` empty: it was told to leave; else the device is lost.
  struct Ended {
    std::string reason;
    bool served = false;  // it did some work before
  };
  using Leave = std::function<bool()>;
  struct Parts {
    std::string tower, device;  // its digest and where it is, for the log
    EncoderFactory factory;
    std::function<void(PictureEncoder&)> check;  // throws if it gives wrong results
    // Returns when `leave` says so, or when there will be no more work.
    std::function<Ended(PictureEncoder&, const Leave&)> serve;
    std::function<void()> wake;  // makes every `serve` ask its `leave` soon
    std::function<void(const std::string& reason)> on_all_failed;
  };

  WorkerPool(Options options, Parts parts, Metrics& metrics);
  // Drain.
  ~WorkerPool();

  // Waits until no worker is loading: OK, what the first failure says (RESOURCE_EXHAUSTED: memory),
  // or CANCELLED because `stop` said so.
  absl::Status WaitUntilReady(const std::function<bool()>& stop = {});
  // As Servable::SetWorkers. If told to stop it does not wait for a worker that does not end.
  absl::Status SetWorkers(int n, const std::function<bool()>& stop);
  int workers() const { return wanted_; }
  // Why there is no worker any more; empty: there is.
  std::string failure() const;
  // Why one was given up, of however many; empty: none.
  std::string given_up() const;
  // As Servable::self_test_drift.
  double self_test_drift() const;

  bool any_ready() const;
  // A worker has been loading, or trying what it loaded, since before `time`.
  bool LoadsSince(CondVar::Clock::time_point time) const;
  // Lets no worker begin anew and waits until none is loading. False: one still is at `until`.
  bool EndLoads(CondVar::Clock::time_point until);
  // Lets no worker begin anew and waits until all have ended. The caller has made sure that there
  // will be no more work.
  void Drain();

 private:
  enum class State { kNone, kLoading, kReady, kFailed };
  struct Slot {
    State state = State::kNone;
    bool running = false;                                          // its thread
    std::optional<CondVar::Clock::time_point> loading_since = {};  // in factory or check
    std::thread thread;
  };
  // Gauges shared with the pools of other towers.
  struct Series {
    explicit Series(Metrics& metrics);
    prometheus::Gauge& Of(State state);
    prometheus::Gauge &loading, &ready, &failed;
    prometheus::Counter& respawns;
  };

  void Begin(int from, int to);
  // False: told to stop, one is still running.
  bool End(int from, int to, const std::function<bool()>& stop);
  void JoinAndClear(int from, int to);
  bool Wanted(int worker) const { return worker < wanted_; }
  bool MayBeginAnew(int worker) const { return Wanted(worker) && !draining_; }
  void Live(int worker);
  // One life of a worker. `loaded`: it got as far as serving.
  Ended LiveOnce(int worker, bool& loaded, absl::Status& status);
  void Enter(int worker, State state) LLAVA_REQUIRES(mutex_);
  int Count(State state) const LLAVA_REQUIRES(mutex_);
  bool AnyRuns(int from, int to) const LLAVA_REQUIRES(mutex_);
  bool AnyLoads(CondVar::Clock::time_point since_before) const LLAVA_REQUIRES(mutex_);
  void GiveUp(int worker, const std::string& reason);
  void LogWorker(std::string_view message, int worker, const std::string& why) const;
  void DeclareFailureIfNoneIsLeft(const std::string& reason);
  void SleepBefore(int worker, std::chrono::milliseconds time);

  const Options options_;
  const Parts parts_;
  Series series_;
  std::atomic<int> wanted_ = 0;
  std::atomic<bool> draining_ = false;

  Mutex resize_mutex_;  // one SetWorkers or Drain at a time; before mutex_

  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<Slot> slots_;  // their states under mutex_, their threads under resize_mutex_
  absl::Status load_status_ LLAVA_GUARDED_BY(mutex_);
  std::string failure_ LLAVA_GUARDED_BY(mutex_);
  std::string given_up_ LLAVA_GUARDED_BY(mutex_);
  double drift_ LLAVA_GUARDED_BY(mutex_) = -1;
};

}  // namespace llava
