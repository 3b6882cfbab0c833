#pragma once

// The towers that requests may use, each a version of a model.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/lifecycle/servable.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/vision/engine.h"

namespace llava {

// A version that is loaded. Two versions of the same tower share an engine.
class VisionServable : public Servable {
 public:
  VisionServable(v1::ModelInfo info, std::shared_ptr<VisionEngine> engine)
      : info_(std::move(info)), engine_(std::move(engine)) {}

  const v1::ModelInfo& info() const override { return info_; }
  ServableLoad load() const override;
  double self_test_drift() const override { return engine_->self_test_drift(); }
  int workers() const override { return engine_->workers(); }
  absl::Status SetWorkers(int n, const std::function<bool()>& stop) override {
    return engine_->SetWorkers(n, stop);
  }

  VisionEngine& engine() const { return *engine_; }

  // For as long as a request holds it, it is counted: by this version, whoever shares its engine.
  static std::shared_ptr<VisionServable> ForCall(std::shared_ptr<VisionServable> servable);

 private:
  const v1::ModelInfo info_;
  const std::shared_ptr<VisionEngine> engine_;
  std::atomic<uint32_t> calls_ = 0;
};

// Who gets a servable here keeps it until its request ends. Thread-safe.
class TowerSet {
 public:
  explicit TowerSet(Metrics& metrics) : metrics_(metrics) {}

  void Route(std::shared_ptr<VisionServable> servable);
  void Unroute(const std::string& name, uint64_t version);

  // `digest`: as VisionSpec.tower_digest. Null: no such tower here.
  std::shared_ptr<VisionServable> FindDigest(const std::string& digest) const;
  // `version` 0: the newest. Null: not here.
  std::shared_ptr<VisionServable> Find(const std::string& name, uint64_t version) const;
  // By name and version.
  std::vector<std::shared_ptr<VisionServable>> List() const;

 private:
  Metrics& metrics_;
  mutable Mutex mutex_;
  std::map<std::pair<std::string, uint64_t>, std::shared_ptr<VisionServable>> towers_
      LLAVA_GUARDED_BY(mutex_);
};

// What a vision process tells about a version of a tower.
v1::ModelInfo TowerModelInfo(const TowerInfo& tower, const std::string& name, uint64_t version);

}  // namespace llava
