#pragma once

// How many answers run at a time, whose turn it is when all places are taken, and what each key may
// use. Load is refused here, at the door, not in the middle.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/token_bucket.h"
#include "server/runtime/fair_queue.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/settings.h"

namespace llava {

struct TurnGateOptions {
  int max_running = 256;
  int max_waiting = 512;
  std::chrono::milliseconds max_wait{30'000};

  // --max-running-turns, --max-waiting-turns, --turn-queue-timeout
  void Declare(Settings& settings);
};

class TurnGate;

// A place among the running turns and a reservation of tokens. Goes back with the object, if not
// before. Thread-safe.
class TurnPermit {
 public:
  ~TurnPermit() { Release(0); }
  TurnPermit(const TurnPermit&) = delete;
  TurnPermit& operator=(const TurnPermit&) = delete;

  // Tokens that it holds.
  double reserved() const { return reserved_; }
  // Gives the place back; `used` tokens are charged instead of the reservation. The first call
  // counts.
  void Release(uint64_t used);

 private:
  friend class TurnGate;
  TurnPermit(TurnGate& gate, Caller caller, double reserved)
      : gate_(gate), caller_(std::move(caller)), reserved_(reserved) {}

  TurnGate& gate_;
  const Caller caller_;
  const double reserved_;
  const std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  std::atomic<bool> released_ = false;
};

// Thread-safe. Outlives its permits; no callback runs under its lock.
class TurnGate {
 public:
  using Done = std::function<void(absl::StatusOr<std::shared_ptr<TurnPermit>>)>;

  TurnGate(const TurnGateOptions& options, Metrics& metrics);
  ~TurnGate();

  // `done` runs once, here or on another thread, with a permit or with
  //  - RESOURCE_EXHAUSTED: a limit of the caller's own key,
  //  - UNAVAILABLE: too many wait, it waited too long, or Close,
  //  - DEADLINE_EXCEEDED, CANCELLED (by Cancel).
  // The first two carry RetryInfo. `tokens` is an estimate of what the turn will use.
  // `charged`: ChargeRequest has counted it.
  uint64_t Enter(const Caller& caller, double tokens, int32_t priority,
                 std::chrono::system_clock::time_point deadline, Done done, bool charged = false) {
    return Enter({caller, tokens, priority, deadline, /*again=*/false, charged}, std::move(done));
  }
  // The same for a turn that an earlier process let in: it waits for a place like all, and counts
  // in the limits of its key, but is refused neither by these nor as one too many. Only its
  // deadline, Cancel and Close end its wait.
  uint64_t ReEnter(const Caller& caller, double tokens, int32_t priority,
                   std::chrono::system_clock::time_point deadline, Done done) {
    return Enter({caller, tokens, priority, deadline, /*again=*/true, /*charged=*/true},
                 std::move(done));
  }
  // Of what makes work without a turn, or before it: counts as a request of the caller's key.
  // RESOURCE_EXHAUSTED as above.
  absl::Status ChargeRequest(const Caller& caller);
  // Takes a waiting turn out; nothing happens if it no longer waits.
  void Cancel(uint64_t ticket);
  // Refuses all that wait and all that come.
  void Close();

 private:
  friend class TurnPermit;
  using TimePoint = std::chrono::steady_clock::time_point;

  // What is known of a key since it first came. Its limits are those of its last call.
  struct Key {
    Key(const Caller& caller, TimePoint now, prometheus::Counter& turns,
        prometheus::Counter& tokens, prometheus::Counter& refusals)
        : limits(caller.limits()),
          requests(limits.requests_per_minute, now),
          tokens(limits.tokens_per_minute, now),
          turns_total(turns),
          tokens_total(tokens),
          refusals_total(refusals) {}

    KeyLimits limits;
    TokenBucket requests, tokens;
    int64_t turns = 0;  // running and waiting
    prometheus::Counter& turns_total;
    prometheus::Counter& tokens_total;
    prometheus::Counter& refusals_total;
  };
  struct Question {
    Caller caller;
    double tokens;
    int32_t priority;
    std::chrono::system_clock::time_point deadline;
    bool again;    // was let in by an earlier process
    bool charged;  // counted as a request before
  };
  struct Waiting {
    uint64_t ticket;
    Question question;
    TimePoint since, deadline;
    bool deadline_is_callers;
    Done done;
  };

  uint64_t Enter(Question question, Done done);

  // Of a call that comes: its limits are the key's from now on.
  Key& KeyOf(const Caller& caller, TimePoint now) LLAVA_REQUIRES(mutex_);
  // Of one that came before, perhaps under other limits.
  Key& Known(const Caller& caller) LLAVA_REQUIRES(mutex_) { return keys_.at(caller.name()); }
  absl::Status Refuse(const Caller& caller, Key& key, const std::string& what,
                      std::chrono::milliseconds retry) LLAVA_REQUIRES(mutex_);
  absl::Status CheckRequests(const Caller& caller, Key& key, TimePoint now) LLAVA_REQUIRES(mutex_);
  absl::Status CheckLimits(const Question& question, Key& key, TimePoint now)
      LLAVA_REQUIRES(mutex_);
  absl::Status CheckRoom(const Question& question, Key& key, TimePoint now) LLAVA_REQUIRES(mutex_);
  bool MustWait() const LLAVA_REQUIRES(mutex_) {
    return running_ >= options_.max_running || !queue_.empty();
  }
  std::chrono::milliseconds RetryDelay() const LLAVA_REQUIRES(mutex_);
  void Forget(const Waiting& waiting) LLAVA_REQUIRES(mutex_);
  void Release(const TurnPermit& permit, uint64_t used);
  // Lets in who is next while there are places.
  void Dispatch();
  void WatchDeadlines();

  const TurnGateOptions options_;
  Metrics& metrics_;
  prometheus::Gauge& waiting_gauge_;
  prometheus::Histogram& wait_seconds_;
  prometheus::Counter& overloads_;

  Mutex mutex_;
  CondVar changed_;
  FairQueue<Waiting> queue_ LLAVA_GUARDED_BY(mutex_);
  std::map<std::string, Key> keys_ LLAVA_GUARDED_BY(mutex_);
  int running_ LLAVA_GUARDED_BY(mutex_) = 0;
  double turn_seconds_ LLAVA_GUARDED_BY(mutex_) = 1;  // moving mean
  uint64_t next_ticket_ LLAVA_GUARDED_BY(mutex_) = 1;
  bool dispatching_ LLAVA_GUARDED_BY(mutex_) = false;
  bool closed_ LLAVA_GUARDED_BY(mutex_) = false;
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace llava
