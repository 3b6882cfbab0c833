#pragma once

// Versions of language models as the model manager loads, routes and frees them.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/lifecycle/servable.h"
#include "server/llm/device_turn.h"
#include "server/llm/disposal_threads.h"
#include "server/llm/engine.h"
#include "server/llm/feature_store.h"
#include "server/llm/llm_service.h"
#include "server/llm/model_runner.h"
#include "server/llm/recent_sessions.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"

namespace llava {

// An engine that is ready, and what its requests need.
class LlmServable : public Servable {
 public:
  LlmServable(std::unique_ptr<LlmEngine> engine, v1::ModelInfo info, FeatureStore& store,
              std::shared_ptr<RecentSessions> recent, Metrics& metrics);
  ~LlmServable() override;

  const v1::ModelInfo& info() const override { return backend_.info; }
  ServableLoad load() const override;
  double self_test_drift() const override { return engine_->self_test_drift(); }
  int workers() const override { return engine_->workers(); }
  absl::Status SetWorkers(int n, const std::function<bool()>& stop) override;

  LlmEngine& engine() { return *engine_; }
  const LlmBackend& backend() const { return backend_; }

 private:
  const std::unique_ptr<LlmEngine> engine_;
  const LlmBackend backend_;
  Metrics& metrics_;
};

// For --kv-bytes 0: keys and values of a version on a device that has `device_bytes` for `most`
// versions of its size, or, where each would get less than 1 GiB, for `served` of them, or for it
// alone. Never less than that (whether it is there shows in loading), nor more than its `sequences`
// can use.
uint64_t ChooseKvBytes(uint64_t device_bytes, const WorkerSize& size, int most, int served,
                       int sequences);

// Loads versions beside each other: they share devices (DeviceTurn), the feature store and what is
// known of recent sessions. While one is served, another is read by threads of the lowest priority.
class LlmServableLoader : public ServableLoader {
 public:
  struct Options {
    LanguageOptions language;  // `model` is the version's
    LlmEngine::Options engine;
    // For language.kv_bytes 0: what so many versions of a model may take of each worker's device.
    uint64_t device_bytes = 0;
    int most_versions = 2, served_versions = 1;
    int64_t context_tokens = 0;  // 0: the model's own
    v1::SamplingParams defaults;
    int prewarm = 0;  // recent sessions that a new version computes before it is routed
    // Opens a checkpoint; replaced by tests.
    std::function<absl::StatusOr<LoadedLanguage>(const LanguageOptions&, const LoadPace&)> open =
        OpenLanguageWorkers;
  };

  // What is given must outlive the loader, and `disposal`, `store` and `metrics` every servable.
  // INVALID_ARGUMENT of Load: `options.language` names devices that there are not.
  LlmServableLoader(Options options, LlmService& service, FeatureStore& store,
                    DisposalThreads& disposal, Metrics& metrics);

  absl::StatusOr<uint64_t> EstimateBytes(const VersionRef& version, int workers) override;
  int workers() const override { return static_cast<int>(turns_.size()); }
  absl::StatusOr<std::shared_ptr<Servable>> Load(const VersionRef& version,
                                                 const LoadOptions& options) override;
  void Route(std::shared_ptr<Servable> servable) override;
  void Unroute(const std::string& name, uint64_t version) override;
  // A worker of a GPU was given up, or a GPU that was loaded before cannot be used.
  std::string device_lost() override;

  // Ends all answers of all versions: the process stops. False: a worker hangs, and whoever waits
  // for its thread may wait for ever.
  bool StopAll();

 private:
  // The devices in the order in which a new version takes them: those that hold the fewest versions
  // first, else as the version before gives them up.
  std::vector<int> DevicesByUse();
  bool ServesAny();
  absl::StatusOr<WorkerSize> SizeOf(const VersionRef& version) const;
  uint64_t KvBytes(const WorkerSize& size) const;  // of each worker
  // What the version makes of recent sessions.
  std::vector<WarmPrompt> WarmPrompts(const LlmBackend& backend, const RecentSessions& recent);

  const Options options_;
  LlmService& service_;
  FeatureStore& store_;
  DisposalThreads& disposal_;
  Metrics& metrics_;
  const std::vector<std::shared_ptr<DeviceTurn>> turns_;  // of each device

  Mutex mutex_;
  std::vector<std::weak_ptr<LlmServable>> loaded_ LLAVA_GUARDED_BY(mutex_);
  bool worked_ LLAVA_GUARDED_BY(mutex_) = false;  // a version was loaded once
  std::string device_lost_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
