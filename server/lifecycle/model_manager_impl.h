#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/lifecycle/lifecycle.h"
#include "server/lifecycle/lifecycle_metrics.h"
#include "server/lifecycle/model_manager.h"
#include "server/runtime/mutex.h"

namespace llava {

// One mutex guards all; loader and servables are called without it. The control thread alone calls
// Route and Unroute, in the order of the steps; loader threads do what takes long; a thread of its
// own does what must not wait for loads.
class ModelManager::Impl {
 public:
  Impl(Options options, ServableLoader& loader, Metrics& metrics);
  ~Impl() { Stop(); }

  void Start();
  absl::Status WaitUntilServing(const std::function<bool()>& stop);
  void Drain();
  void Stop();
  absl::StatusOr<v1::ListModelsResponse> List(const std::string& name);
  absl::StatusOr<std::vector<v1::ModelVersionStatus>> Statuses(const std::string& name,
                                                               uint64_t version);
  uint64_t Call(bool load, const std::string& name, uint64_t version, OnDone done);
  bool Forget(uint64_t call);
  void LookNow();
  bool Knows(const std::string& name);
  const Options& options() const { return options_; }

 private:
  // What there is of a version beside its state.
  struct Held {
    std::shared_ptr<Servable> servable;  // null after kRelease
    std::weak_ptr<const void> memory;    // expired: freed
    bool routed = false;
    double progress = 0;
    std::shared_ptr<std::atomic<bool>> stop = std::make_shared<std::atomic<bool>>(false);
    Lifecycle::Time draining_since{}, released{};
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
  void Report(const std::vector<Lifecycle::Transition>& transitions, Lifecycle::Time now)
      LLAVA_REQUIRES(mutex_);
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
  bool device_lost_ = false;  // and told; of the control thread

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
  std::atomic<bool> stop_ = false;  // changed under the lock
  absl::Status first_failure_ LLAVA_GUARDED_BY(mutex_);
  bool first_failed_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
