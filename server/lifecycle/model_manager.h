#pragma once

// Keeps the right versions of models loaded, while others are served.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"
#include "server/lifecycle/policy.h"
#include "server/lifecycle/repository_watcher.h"
#include "server/lifecycle/servable.h"
#include "server/lifecycle/swap_plan.h"
#include "server/runtime/metrics.h"

namespace llava {

// Watches a repository (or knows one fixed folder), and loads, routes, drains and frees versions as
// policy, marks and operators want it: docs/lifecycle.md. Never blocks its callers: all work is
// done on threads of its own.
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
    // Told (on a thread of the manager, in order) how many versions of a model take requests now:
    // for health and readiness.
    std::function<void(const std::string& model, int serving)> on_serving;
    // Told once (on a thread of the manager), when only a new process helps:
    // ServableLoader::device_lost says why, or nothing of a model can be served because a version
    // that made way has not been taken apart for this time.
    std::function<void(const std::string& reason)> on_device_lost;
    std::chrono::milliseconds hung_after{60'000};  // nor do loads wait longer for its memory
    uint64_t seed = 0;                             // of the jitter; 0: random
  };

  ModelManager(Options options, ServableLoader& loader, Metrics& metrics);
  ~ModelManager();

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
  // (empty: all) of which nothing is known, UNAVAILABLE before the first look at the repository.
  absl::StatusOr<v1::ListModelsResponse> List(const std::string& name) const;
  // All versions that are known, the newest of a model first; `version` 0: all of the model.
  absl::StatusOr<std::vector<v1::ModelVersionStatus>> Statuses(const std::string& name,
                                                               uint64_t version) const;

  using OnDone = std::function<void(const absl::StatusOr<v1::ModelVersionStatus>&)>;
  // Wishes (VersionWishes). `done` is called once, perhaps before the call returns, on a thread of
  // the manager or this one: when the version is READY, or with the error of the next try to load
  // it; when it is freed. `version` 0: the newest (Load), the only one that is loaded (Unload). A
  // number for Forget.
  uint64_t Load(const std::string& name, uint64_t version, OnDone done);
  uint64_t Unload(const std::string& name, uint64_t version, OnDone done);
  // The caller waits no longer: `done` will not be called after this returns true. What it asked
  // for goes on.
  bool Forget(uint64_t call);

  // Marks have been written: look at the repository now.
  void LookNow();
  // The repository's root; empty: there is none.
  const std::filesystem::path& root() const;
  // Whether `name` is one of the models that are looked after, or might be.
  bool Knows(const std::string& name) const;

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace llava
