#pragma once

// Towers of the model repository as the model manager loads them.

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/lifecycle/servable.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/vision/engine.h"
#include "server/vision/feature_cache.h"
#include "server/vision/picture_encoder.h"
#include "server/vision/tower_set.h"

namespace llava {

// Frees engines on a thread of its own: the last reference may go on one of the engine's threads,
// which cannot wait for itself. Thread-safe; must outlive what it owns.
class EngineReaper {
 public:
  EngineReaper();
  ~EngineReaper();  // when all that was given back is freed
  std::shared_ptr<VisionEngine> Own(std::unique_ptr<VisionEngine> engine);
  // Waits until the engines given back so far are freed. False: `stop`, which is polled, said so
  // before; one that hangs never is.
  bool Wait(const std::function<bool()>& stop);
  // For those that are not freed yet.
  void ForEach(const std::function<void(VisionEngine&)>& look);

 private:
  void Loop();

  Mutex mutex_;
  CondVar changed_;
  std::deque<std::unique_ptr<VisionEngine>> gone_ LLAVA_GUARDED_BY(mutex_);
  bool freeing_ LLAVA_GUARDED_BY(mutex_) = false;
  int looks_ LLAVA_GUARDED_BY(mutex_) = 0;  // ForEach under way
  bool closed_ LLAVA_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last
};

// A version whose tower is loaded already, by its digest, is verified like any other and then
// shares the engine. All engines share the feature cache. Memory() of a servable expires when it
// lets go of its engine, which the reaper frees behind it; the next Load waits for that. Must
// outlive its servables. Thread-safe.
class VisionServableLoader : public ServableLoader {
 public:
  // `options.model` is not used.
  VisionServableLoader(TowerOptions options, VisionEngine::Options engine, FeatureCache& cache,
                       Metrics& metrics);

  absl::StatusOr<uint64_t> EstimateBytes(const VersionRef& version, int workers) override;
  std::string MemoryGroup(const VersionRef& version) override;  // versions of one tower
  int workers() const override { return workers_; }
  absl::StatusOr<std::shared_ptr<Servable>> Load(const VersionRef& version,
                                                 const LoadOptions& options) override;
  void Route(std::shared_ptr<Servable> servable) override;
  void Unroute(const std::string& name, uint64_t version) override {
    towers_.Unroute(name, version);
  }
  // A worker hangs (its calls end now), one of a GPU was given up, or a GPU that was loaded before
  // cannot be used.
  std::string device_lost() override;

  const TowerSet& towers() const { return towers_; }
  // As VisionEngine::Stop, all engines.
  bool Stop();

 private:
  // The engine of this tower, perhaps loading, if somebody still holds it and it is sound.
  std::shared_ptr<VisionEngine> FindEngine(const Sha256Digest& digest) LLAVA_REQUIRES(mutex_);

  // All there are: loading, held, and not freed yet.
  void ForEach(const std::function<void(VisionEngine&)>& look);
  bool on_cpu() const { return options_.device.starts_with("cpu"); }

  const TowerOptions options_;
  const VisionEngine::Options engine_options_;
  const int workers_;
  FeatureCache& cache_;
  Metrics& metrics_;
  EngineReaper reaper_;
  TowerSet towers_;  // before the reaper goes

  Mutex mutex_;
  std::vector<std::weak_ptr<VisionEngine>> engines_ LLAVA_GUARDED_BY(mutex_);
  bool worked_ LLAVA_GUARDED_BY(mutex_) = false;  // a tower was loaded once
  std::string device_lost_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
