#pragma once

// What happens to each version when: the decisions behind ModelManager, without threads, clock or
// disk.

#include <chrono>
#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "llava/v1/models.pb.h"
#include "server/lifecycle/policy.h"
#include "server/lifecycle/swap_plan.h"

namespace llava {

struct VersionId {
  std::string name;
  uint64_t version = 0;
  auto operator<=>(const VersionId&) const = default;
};

// Not loaded, and nothing of it is on its way.
bool Resting(v1::ModelState state);

// A state machine over all versions of all models. The caller feeds events, calls Next after them
// and when NextTime has come, and does the steps that it gives, in their order. One thread.
//
// Promises, whatever the order of events:
//   - a version is loaded by one job at a time, and no servable is given up before it is unrouted
//   - once a version of a model is routed, one stays routed until the new one is; except that
//     UnloadModel takes it, its own failure does, or an in_place swap, whose failure brings it back
//   - what is loaded, loading and not freed yet fits the budget, unless that is soft
//   - what a loader loaded is given up (kRelease) exactly once
class Lifecycle {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::steady_clock::duration;

  struct Options {
    VersionPolicy policy;
    uint64_t memory_budget = 0;  // bytes; 0: no limit
    bool soft_budget = false;
    std::optional<SwapMode> swap_mode;
    int workers = 1;                                 // of the loader
    int load_slots = 1;                              // versions on their way at the same time
    Duration retry_delay = std::chrono::seconds(1);  // 0: no retry
    Duration retry_max_delay = std::chrono::minutes(5);
    Duration hung_after = std::chrono::minutes(1);  // of a version that is not freed for so long
    uint64_t seed = 1;                              // of the jitter
  };

  // What a version takes.
  struct Size {
    WorkerBytes bytes;         // on 1, 2, ... workers
    std::string memory_group;  // as ServableLoader::MemoryGroup
  };

  struct Step {
    enum class Kind {
      kEstimate,    // -> Estimated
      kVerify,      // the files against the manifest -> Verified
      kLoad,        // on `workers` workers -> Loaded; meanwhile Warming
      kStop,        // asks the kVerify, kLoad or kSetWorkers under way to end soon
      kSetWorkers,  // to `workers` -> WorkersSet
      kRoute,
      kUnroute,
      kRelease  // forget the servable; Freed when its last user has
    };
    Kind kind;
    VersionId id;
    int workers = 0;
    uint64_t predecessor = 0;  // of kLoad: a loaded version, 0 = none
  };

  struct Version {
    v1::ModelState state = v1::MODEL_STATE_AVAILABLE;
    std::string message;  // why
    Time since{};
    absl::Status error;             // of the last failure
    int failures = 0;               // in a row
    int attempts = 0;               // failures ever
    Time retry_at{};                // of a FAILED version, see `waits_for_change`
    bool waits_for_change = false;  // of its files, or LoadModel: time alone does not help
    bool present = true;            // in the repository
    bool held = false;              // a servable is there and not given up
    int workers = 0;                // that hold it, or will
    WorkerBytes bytes;              // empty: not known yet
    std::string memory_group;       // as in Size

   private:
    friend class Lifecycle;
    enum class Job { kNone, kEstimate, kVerify, kLoad, kSetWorkers, kRelease };
    Job job = Job::kNone;
    std::string mark, loaded_mark;  // of its files: now, when the loading began
    std::string sized_mark;         // ... and when `bytes` was estimated
    std::string why_stopped;        // not empty: the job was asked to end
    bool fresh = false;             // loaded, not routed yet
    bool failed_in_load = false;    // the last failure came after reading had begun
    Time released{};                // of kRelease
    bool refused = false;           // ... or was one of memory
    bool costly = false;            // an old version has made way, or given up workers
    int workers_wanted = 0;         // of kSetWorkers
    absl::Status broken;            // why it will be FAILED once it is freed
    SwapMode mode = SwapMode::kSideBySide;
    uint64_t replaced = 0;
    Time begun{};  // of loading or swap

    // If somebody repaired it since its loading began.
    void ForgetOldFailures() {
      if (loaded_mark != mark) failures = 0;
      loaded_mark.clear();
    }
  };

  struct Transition {
    VersionId id;
    v1::ModelState from, to;
    std::string message;
  };
  // A version took the place of another.
  struct Swap {
    VersionId id;
    SwapMode mode;
    Duration took;  // from the decision until requests go to it on all workers
  };

  explicit Lifecycle(Options options);

  // Events.
  void SetRepository(const RepositorySnapshot& snapshot, Time now);
  // Wishes of operators. The version is known.
  void WantLoaded(const VersionId& id, Time now);
  void WantUnloaded(const VersionId& id, Time now);
  void Estimated(const VersionId& id, const absl::StatusOr<Size>& size, Time now);
  void Verified(const VersionId& id, const absl::Status& status, Time now);
  void Warming(const VersionId& id, Time now);
  void Loaded(const VersionId& id, const absl::Status& status, Time now);
  void WorkersSet(const VersionId& id, const absl::Status& status, Time now);
  // Nothing is under way on a DRAINING version.
  void Idle(const VersionId& id, Time now);
  // The last user of a version that was given up has gone.
  void Freed(const VersionId& id, Time now);
  // A READY version serves no more.
  void Broke(const VersionId& id, const absl::Status& status, Time now);
  // Nothing is loaded from now on.
  void Drain() { draining_ = true; }

  std::vector<Step> Next(Time now);
  // When, after `now`, time alone changes something; Time::max(): never.
  Time NextTime(Time now) const;

  const std::map<VersionId, Version>& versions() const { return versions_; }
  const Version* Find(const VersionId& id) const;
  // Whether policy or operators want it loaded.
  bool Wants(const VersionId& id) const;
  // Of each model that the repository had, as many versions serve as the policy asks for, or each
  // one that is wanted has been loaded or has failed. (Whoever publishes faster than versions load
  // does not hold it up.)
  bool FirstLoadsDone() const;
  // Nothing is under way, and nothing will be unless something happens (or a retry is due).
  bool Settled() const;
  // Bytes of what is loaded, loading or not freed yet, as estimated.
  uint64_t EstimatedBytes() const;
  std::vector<Transition> TakeTransitions();
  std::vector<Swap> TakeSwaps();

 private:
  // A swap that is more than a load: one a model at a time.
  struct Exchange {
    enum class Phase {
      kVerify,
      kDrainOld,   // in_place; the last but one phase of rolling
      kShrinkOld,  // rolling: the first worker
      kLoadNew,
      kMove,       // rolling: worker by worker
      kGrowNew,    // rolling: the last worker
      kDropNew,    // rolling has failed: the new version goes
      kRestoreOld  // ... and the old one gets its workers back
    };
    SwapMode mode = SwapMode::kInPlace;
    Phase phase = Phase::kVerify;
    uint64_t candidate = 0;
    std::vector<uint64_t> victims;
  };
  struct Model {
    RepositoryModel seen;
    VersionWishes wishes;
    VersionChoice choice;
    std::set<uint64_t> restore;  // made way for a version that failed
    std::optional<Exchange> exchange;
  };

  void Enter(const VersionId& id, v1::ModelState state, std::string message, Time now);
  void Fail(const VersionId& id, const absl::Status& status, Time now);
  void Route(const VersionId& id, Time now);
  void Unroute(const VersionId& id, std::string why, Time now);
  // It has not been loaded after all.
  void PutBack(const VersionId& id, Time now);
  // A load that was asked to end has ended.
  void Stopped(const VersionId& id, Time now);
  void BeginLoad(const VersionId& id, int workers, uint64_t predecessor);
  void BeginWorkers(const VersionId& id, int workers);
  void Erase(const VersionId& id);
  void Prune(const std::string& name);

  // The parts of Next, for one model.
  void Choose(const std::string& name, Model& model);
  void RouteFresh(const std::string& name, Model& model, Time now);
  void Settle(const std::string& name, Model& model, Time now);
  void Advance(const std::string& name, Model& model, Time now);
  // Ends an exchange because a version of it hangs, and with it the memory that `id` was to have.
  void GiveUpInPlace(const VersionId& id, uint64_t hangs, Model& model, Time now);
  void GiveUpRolling(const VersionId& id, uint64_t hangs, Model& model);
  void AdvanceRolling(const std::string& name, Model& model, Time now);
  void RestoreWorkers(const std::string& name, Model& model);
  // Of all models, in order of importance.
  void StartLoads(Time now);
  // False: those that are less important must wait.
  bool TryStart(const VersionId& id, Model& model, Time now);
  SwapRequest RequestFor(const VersionId& id, const Model& model, Time now) const;

  bool IsTarget(const Model& model, uint64_t version) const;
  // Whether `version` may make way for `candidate`: targets for nobody, and stand-ins only for
  // targets, else two stand-ins would replace each other for ever.
  bool MayGo(const Model& model, uint64_t version, uint64_t candidate) const;
  bool InExchange(const Model& model, uint64_t version) const;
  // Targets and wishes that are not loaded; the whole number range if there are none.
  size_t Missing(const std::string& name, const Model& model) const;
  uint64_t NewestReady(const std::string& name, uint64_t except = 0) const;
  uint64_t BytesOf(const Version& version) const;
  class ByteSum;
  int SlotsInUse() const;
  bool InMotion(Time now) const;
  // It was given up so long ago that nobody knows when its memory will be free.
  bool Hangs(const Version& version, Time now) const;
  bool Due(const Version& version, Time now) const;

  const Options options_;
  std::mt19937_64 random_;
  bool looked_ = false;  // into the repository
  bool draining_ = false;
  uint64_t changes_ = 0;  // counted, so that Next sees that something happened
  std::map<std::string, Model> models_;
  std::map<VersionId, Version> versions_;
  std::vector<Step> steps_;
  std::vector<Transition> transitions_;
  std::vector<Swap> swaps_;
};

}  // namespace llava
