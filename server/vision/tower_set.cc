#include "server/vision/tower_set.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>

#include "model/digest/sha256.h"
#include "server/lifecycle/lifecycle_metrics.h"

namespace llava {

v1::ModelInfo TowerModelInfo(const TowerInfo& tower, const std::string& name, uint64_t version) {
  v1::ModelInfo info;
  info.mutable_model()->set_name(name);
  info.mutable_model()->set_version(version);
  info.mutable_model()->set_digest(ToBytes(tower.digest));
  info.set_kind(v1::MODEL_KIND_TOWER);
  info.mutable_vision_spec()->set_tower_digest(ToBytes(tower.digest));
  info.set_numerics(tower.numerics);
  info.set_feature_rows(static_cast<uint32_t>(tower.num_patches));
  info.set_feature_width(static_cast<uint32_t>(tower.width));
  return info;
}

std::shared_ptr<VisionServable> VisionServable::ForCall(std::shared_ptr<VisionServable> servable) {
  ++servable->calls_;
  VisionServable* const plain = servable.get();
  return {plain, [servable = std::move(servable)](VisionServable*) { --servable->calls_; }};
}

ServableLoad VisionServable::load() const {
  const TowerInfo& tower = engine_->info();
  ServableLoad load;
  // The engine's pictures and tiles may be another version's.
  const uint32_t calls = calls_;
  load.queued = std::min(calls, static_cast<uint32_t>(engine_->waiting()));
  load.in_flight = calls - load.queued;
  // Workers take devices in turn.
  load.weight_bytes =
      tower.weight_bytes * static_cast<uint64_t>(std::min(tower.devices, engine_->workers()));
  load.nan_outputs = engine_->statistics().nan_outputs;
  load.queued_bytes = engine_->waiting_bytes();
  load.feature_cache = engine_->cache().status();
  load.failure = engine_->failure();
  return load;
}

void TowerSet::Route(std::shared_ptr<VisionServable> servable) {
  const v1::ModelVersion& model = servable->info().model();
  const std::pair key(model.name(), model.version());
  MutexLock lock(mutex_);
  if (const auto old = towers_.find(key); old != towers_.end()) {
    ShowModelInfo(metrics_, old->second->info(), false);
  }
  ShowModelInfo(metrics_, servable->info(), true);
  towers_[key] = std::move(servable);
}

void TowerSet::Unroute(const std::string& name, uint64_t version) {
  std::shared_ptr<VisionServable> gone;  // freed without the lock
  MutexLock lock(mutex_);
  const auto found = towers_.find({name, version});
  if (found == towers_.end()) return;
  ShowModelInfo(metrics_, found->second->info(), false);
  gone = std::move(found->second);
  towers_.erase(found);
}

std::shared_ptr<VisionServable> TowerSet::FindDigest(const std::string& digest) const {
  MutexLock lock(mutex_);
  for (const auto& [key, servable] : towers_) {
    if (servable->info().vision_spec().tower_digest() == digest) {
      return VisionServable::ForCall(servable);
    }
  }
  return nullptr;
}

std::shared_ptr<VisionServable> TowerSet::Find(const std::string& name, uint64_t version) const {
  MutexLock lock(mutex_);
  if (version != 0) {
    const auto found = towers_.find({name, version});
    return found == towers_.end() ? nullptr : VisionServable::ForCall(found->second);
  }
  const auto behind = towers_.upper_bound({name, UINT64_MAX});
  if (behind == towers_.begin()) return nullptr;
  const auto newest = std::prev(behind);
  return newest->first.first == name ? VisionServable::ForCall(newest->second) : nullptr;
}

std::vector<std::shared_ptr<VisionServable>> TowerSet::List() const {
  std::vector<std::shared_ptr<VisionServable>> all;
  MutexLock lock(mutex_);
  for (const auto& [key, servable] : towers_) all.push_back(servable);
  return all;
}

}  // namespace llava
