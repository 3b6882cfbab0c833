#pragma once

// Keeps the right versions of models loaded, while others are served.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"
#include "server/lifecycle/lifecycle.h"
#include "server/lifecycle/lifecycle_metrics.h"
#include "server/lifecycle/policy.h"
#include "server/lifecycle/repository_watcher.h"
#include "server/lifecycle/servable.h"
#include "server/lifecycle/swap_plan.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"

namespace llava {

// Watches a repository (or knows one fixed folder), and loads, routes, drains and frees versions as
// policy, marks and operators want it: docs/lifecycle.md. Never blocks its callers: all work is
// done on threads of its own.
//
// One mutex guards all; loader and servables are called without it. The control thread alone calls
// Route and Unroute, in the order of the steps; loader threads do what takes long; a thread of its
// own does what must not wait for loads.
//
// Order of calls: constructor (no thread yet), Start, ..., Stop. Thread-safe. `loader` and
// `metrics` must outlive it; servables are freed on its threads or by the last request.
class ModelManager {
 public:
  struct Options {
    std::filesystem::path root;          // the repository; empty: `fixed` alone
    std::set<std::string> names;         // models; empty: all of `kind` in the root
    std::optional<Manifest::Kind> kind;  // of the versions that the loader can load
    std::optional<VersionRef> fixed;     // a folder outside of any repository
    bool must_start = false;             // WaitUntilServing fails if the first loads fail

    VersionPolicy policy;
    std::chrono::milliseconds poll_interval{5000};
    uint64_t memory_budget = 0;          // bytes of all versions together; 0: no limit
    bool soft_budget = false;            // a guess: it chooses how to swap, and refuses nothing
    std::optional<SwapMode> swap_mode;   // nothing: by sizes
    int load_threads = 1;                // versions loaded at the same time
    uint64_t load_bytes_per_second = 0;  // handed to the loader; 0: no limit
    std::chrono::milliseconds retry_delay{1000};  // after a failure, doubled each time up to ...
    std::chrono::milliseconds retry_max_delay{300'000};  // ... this, ± a fifth. 0: no retry

    // Of a model at a time: those that are served (of labels "stable" and "canary"), ...
    int served_versions() const;
    // ... and one that comes beside them to take over.
    int most_versions() const;

    // Told (on a thread of the manager, in order) how many versions of a model take requests now:
    // for health and readiness.
    std::function<void(const std::string& model, int serving)> on_serving;
    // Told once (on the same thread, after on_serving), when the start is over: each model that the
    // repository had then is served as the policy wants it, or has failed to be.
    std::function<void()> on_first_loads;
    // Told once (on a thread of the manager), when only a new process helps:
    // ServableLoader::device_lost says why, or nothing of a model can be served because a version
    // that made way has not been taken apart for this time.
    std::function<void(const std::string& reason)> on_device_lost;
    std::chrono::milliseconds hung_after{60'000};  // nor do loads wait longer for its memory
    uint64_t seed = 0;                             // of the jitter; 0: random
  };

  ModelManager(Options options, ServableLoader& loader, Metrics& metrics);
  ~ModelManager() { Stop(); }

  void Start();
  // Returns OK when a version is served, or at once if must_start is not set. Else the error of
  // the version that was wanted most: NOT_FOUND if there is none at all; see ServableLoader::Load.
  // CANCELLED after Stop, or because `stop`, which is polled, said so.
  absl::Status WaitUntilServing(const std::function<bool()>& stop = {});
  // The process drains: nothing is loaded any more, all states are DRAINING.
  void Drain();
  // Cancels loads, answers all waiting calls with UNAVAILABLE, gives up all versions, joins.
  void Stop();

  // Versions that take requests and those that are to, with their labels; NOT_FOUND for a `name`
  // (empty: all) of which nothing is known, UNAVAILABLE before the first look at the repository and
  // after Stop.
  absl::StatusOr<v1::ListModelsResponse> List(const std::string& name);
  // All versions that are known, the newest of a model first; `version` 0: all of the model.
  absl::StatusOr<std::vector<v1::ModelVersionStatus>> Statuses(const std::string& name,
                                                               uint64_t version);

  using OnDone = std::function<void(const absl::StatusOr<v1::ModelVersionStatus>&)>;
  // Wishes (VersionWishes). `done` is called once, perhaps before the call returns, on a thread of
  // the manager or this one: when the version is READY, or with the error of the next try to load
  // it; when it is freed. `version` 0: the newest (Load), the only one that is loaded (Unload). A
  // number for Forget.
  uint64_t Load(const std::string& name, uint64_t version, OnDone done) {
    return Call(true, name, version, std::move(done));
  }
  uint64_t Unload(const std::string& name, uint64_t version, OnDone done) {
    return Call(false, name, version, std::move(done));
  }
  // The caller waits no longer: `done` will not be called after this returns true. What it asked
  // for goes on.
  bool Forget(uint64_t call);

  // Marks have been written: look at the repository now.
  void LookNow();
  // The repository's root; empty: there is none.
  const std::filesystem::path& root() const { return options_.root; }
  // Whether `name` is one of the models that are looked after, or might be.
  bool Knows(const std::string& name);

 private:
  // What there is of a version beside its state.
  struct Held {
    std::shared_ptr<Servable> servable;  // null after kRelease
    std::weak_ptr<const void> memory;    // expired: freed
    bool routed = false;
    double progress = 0;
    std::shared_ptr<std::atomic<bool>> stop = std::make_shared<std::atomic<bool>>(false);
    Lifecycle::Time released{};
  };
  struct PendingCall {
    bool load = false;
    VersionId id;       // version 0: not resolved yet
    uint64_t look = 0;  // of the repository that must have been seen before
    bool applied = false;
    int attempts = 0;  // failures before the call
    OnDone done;
  };
  using Answers = std::vector<std::pair<OnDone, absl::StatusOr<VersionId>>>;

  uint64_t Call(bool load, const std::string& name, uint64_t version, OnDone done);
  void OnLook(uint64_t look, const absl::StatusOr<RepositorySnapshot>& snapshot);
  void Control();
  // One round of the control thread. False: Stop.
  bool Round();
  void AskServables();
  void AskForLostDevice();
  // Why nothing of a model is served although something is wanted: what was served before hangs
  // and keeps its memory. Empty: there is no such model.
  std::string HungVersion();
  void Worker(std::deque<Lifecycle::Step>& jobs);
  void Do(const Lifecycle::Step& step);
  absl::Status DoLoad(const Lifecycle::Step& step);
  absl::StatusOr<Lifecycle::Size> DoEstimate(const VersionId& id);
  void DoRelease(const VersionId& id);

  void Wake() LLAVA_REQUIRES(mutex_) {
    woken_ = true;
    changed_.NotifyAll();
  }
  void ApplyCalls(Lifecycle::Time now, Answers& answers) LLAVA_REQUIRES(mutex_);
  // Which version a call means.
  absl::StatusOr<VersionId> Resolve(const PendingCall& call) LLAVA_REQUIRES(mutex_);
  void CollectAnswers(Answers& answers) LLAVA_REQUIRES(mutex_);
  void Report(const std::vector<Lifecycle::Transition>& transitions) LLAVA_REQUIRES(mutex_);
  static absl::Status EndingError();
  absl::Status FirstFailure() LLAVA_REQUIRES(mutex_);
  v1::ModelVersionStatus StatusOf(const VersionId& id, const Lifecycle::Version& version,
                                  Lifecycle::Time now) LLAVA_REQUIRES(mutex_);
  absl::Status CheckName(const std::string& name) LLAVA_REQUIRES(mutex_);
  VersionRef RefOf(const VersionId& id) const;

  const Options options_;
  ServableLoader& loader_;
  const int workers_;
  LifecycleMetrics metrics_;
  std::unique_ptr<RepositoryWatcher> watcher_;  // null: `fixed`
  std::vector<std::thread> threads_;
  bool device_lost_ = false;       // and told; of the control thread
  bool first_loads_done_ = false;  // likewise

  Mutex mutex_;
  CondVar changed_;  // for the control thread
  CondVar jobs_;     // for the others
  CondVar round_;    // a round has ended, or no status is being read
  Lifecycle lifecycle_ LLAVA_GUARDED_BY(mutex_);
  RepositorySnapshot snapshot_ LLAVA_GUARDED_BY(mutex_);
  uint64_t look_ LLAVA_GUARDED_BY(mutex_) = 0;          // the last
  uint64_t decided_look_ LLAVA_GUARDED_BY(mutex_) = 0;  // the last that Next has thought about
  absl::Status look_error_ LLAVA_GUARDED_BY(mutex_);
  std::map<VersionId, Held> held_ LLAVA_GUARDED_BY(mutex_);
  std::map<std::string, int> serving_ LLAVA_GUARDED_BY(mutex_);
  std::map<uint64_t, PendingCall> calls_ LLAVA_GUARDED_BY(mutex_);
  uint64_t next_call_ LLAVA_GUARDED_BY(mutex_) = 1;
  std::deque<Lifecycle::Step> loads_ LLAVA_GUARDED_BY(mutex_);
  std::deque<Lifecycle::Step> chores_ LLAVA_GUARDED_BY(mutex_);
  int readers_ LLAVA_GUARDED_BY(mutex_) = 0;  // of servables, outside of the lock
  bool woken_ LLAVA_GUARDED_BY(mutex_) = false;
  bool draining_ LLAVA_GUARDED_BY(mutex_) = false;
  std::atomic<bool> stop_ = false;                       // changed under the lock
  absl::Status first_failure_ LLAVA_GUARDED_BY(mutex_);  // stays
};

}  // namespace llava
