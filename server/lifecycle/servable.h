#pragma once

// What the model manager needs of a service: to load a version of the repository, to route requests
// to it, to take it away again.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"

namespace llava {

// A complete version in the repository.
struct VersionRef {
  std::string name;
  uint64_t version = 0;
  std::filesystem::path folder;  // <root>/<name>/<version>
};

// What a version is doing at the moment.
struct ServableLoad {
  uint32_t in_flight = 0;     // requests whose work has begun
  uint32_t queued = 0;        // requests that wait for it
  uint64_t weight_bytes = 0;  // resident, of all workers
  uint64_t nan_outputs = 0;   // requests that failed because the model gave no number
  // Of a tower.
  uint64_t queued_bytes = 0;  // that requests under way hold
  std::optional<v1::FeatureCacheStatus> feature_cache;
  std::string failure;  // why no worker can serve it any more; empty: one can
};

// A loaded version. Requests hold it by shared_ptr, so the last of them to end frees it.
// Thread-safe.
class Servable {
 public:
  virtual ~Servable() = default;
  // As callers see it; labels are filled in by others.
  virtual const v1::ModelInfo& info() const = 0;
  virtual ServableLoad load() const = 0;
  // Largest deviation from the self-test's reference on any worker; negative: no self-test.
  virtual double self_test_drift() const = 0;
  // Workers (one per device) that hold this version. SetWorkers(n) gives up the last ones, each
  // when its answers have ended, or loads more; returns when that is done (CANCELLED: `stop` said
  // so). Rolling swaps move them one by one. n >= 1.
  virtual int workers() const = 0;
  virtual absl::Status SetWorkers(int n, const std::function<bool()>& stop) = 0;
  // Expires when the version has been taken apart, which may come long after the last holder let go
  // of it: its memory is free then, or will be before its loader reads another one.
  std::weak_ptr<const void> memory() const { return memory_; }

 private:
  const std::shared_ptr<const int> memory_ = std::make_shared<const int>();
};

// Called from the manager's loader threads; Route and Unroute from any thread, quickly.
class ServableLoader {
 public:
  struct LoadOptions {
    int workers = 0;  // that get it; 0: all
    // Share of the reading that is done.
    std::function<void(double)> progress = [](double) {};
    // Reading is over; warm-up and self-test begin.
    std::function<void()> warming = [] {};
    std::function<bool()> stop = [] { return false; };  // polled: CANCELLED when it says true
    std::shared_ptr<Servable> predecessor;  // the version it will stand in for, or null: whose
                                            // recent sessions are computed ahead
    uint64_t bytes_per_second = 0;          // reads no faster; 0: as fast as it goes
  };

  virtual ~ServableLoader() = default;
  // Resident bytes the version takes on `workers` workers (0: all), working memory (keys and
  // values, activations) included, from its manifest and configuration alone.
  virtual absl::StatusOr<uint64_t> EstimateBytes(const VersionRef& version, int workers) = 0;
  // Versions of one group that are loaded at the same time share their memory, which is free when
  // the last of them is. Empty: it shares nothing.
  virtual std::string MemoryGroup(const VersionRef&) { return ""; }
  virtual int workers() const = 0;
  // Reads, verifies, warms up and tests a version, while others are served. The error says exactly
  // why not: NOT_FOUND, DATA_LOSS (broken or foreign files, wrong digest, NaN weights),
  // INVALID_ARGUMENT (settings that do not go with it), INTERNAL (the self-test fails),
  // PERMISSION_DENIED, RESOURCE_EXHAUSTED (memory), FAILED_PRECONDITION (no such device, missing
  // tower), CANCELLED.
  virtual absl::StatusOr<std::shared_ptr<Servable>> Load(const VersionRef& version,
                                                         const LoadOptions& options) = 0;
  // From now on requests for this version are taken; beside others of the same model.
  virtual void Route(std::shared_ptr<Servable> servable) = 0;
  // No new requests for it; those under way go on and hold it.
  virtual void Unroute(const std::string& name, uint64_t version) = 0;
  // Why a device that worked is of no use to this process any more, whereas a new process may get
  // it back; empty: none is. Asked a few times a second.
  virtual std::string device_lost() { return ""; }
};

}  // namespace llava
