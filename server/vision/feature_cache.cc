#include "server/vision/feature_cache.h"

#include <algorithm>
#include <utility>

namespace llava {

FeatureCache::FeatureCache(uint64_t budget_bytes, Metrics& metrics,
                           std::unique_ptr<FeatureDisk> disk)
    : budget_bytes_(budget_bytes),
      disk_(std::move(disk)),
      bytes_gauge_(metrics.Gauge("llava_vision_feature_cache_bytes", "Bytes of features kept")),
      entries_gauge_(
          metrics.Gauge("llava_vision_feature_cache_entries", "Pictures whose features are kept")),
      hits_(metrics.Counter("llava_vision_feature_cache_hits_total",
                            "Requests whose features were in the cache")),
      misses_(metrics.Counter("llava_vision_feature_cache_misses_total",
                              "Requests whose features had to be computed or waited for")),
      evictions_(metrics.Counter("llava_vision_feature_cache_evictions_total",
                                 "Features dropped to keep the byte budget")) {
  metrics.Gauge("llava_vision_feature_cache_budget_bytes", "Bytes of features that may be kept")
      .Set(static_cast<double>(budget_bytes));
}

FeatureCache::Begun FeatureCache::Begin(const std::string& key, std::shared_ptr<EncodeCall> call) {
  MutexLock lock(mutex_);
  if (const auto* const features = recent_.Find(key)) {
    hits_.Increment();
    return {*features, false};
  }
  misses_.Increment();
  Calls& calls = under_way_[key].calls;
  calls.push_back(std::move(call));
  if (calls.size() == 1) return {nullptr, true};
  ++followers_;
  return {nullptr, false};
}

FeatureCache::Pruned FeatureCache::Prune(const std::string& key,
                                         EncodeCall::Clock::time_point now) {
  Pruned pruned;
  MutexLock lock(mutex_);
  const auto found = under_way_.find(key);
  if (found == under_way_.end()) return pruned;
  Calls waiting;
  Calls& calls = found->second.calls;
  const size_t before = calls.size();
  for (auto& call : calls) {
    if (call->gone()) {
      pruned.gone.push_back(std::move(call));
    } else if (call->deadline() <= now) {
      pruned.expired.push_back(std::move(call));
    } else {
      waiting.push_back(std::move(call));
    }
  }
  followers_ -= before - std::max<size_t>(waiting.size(), 1);
  calls = std::move(waiting);
  if (calls.empty()) {
    under_way_.erase(found);
    pruned.ended = true;
  }
  return pruned;
}

FeatureCache::Found FeatureCache::FinishFromDisk(const std::string& key) {
  Found found;
  if (disk_) found.features = disk_->Read(key);
  if (found.features) found.calls = End(key, found.features, /*to_disk=*/false);
  return found;
}

FeatureCache::Calls FeatureCache::Finish(const std::string& key,
                                         std::shared_ptr<const Features> features) {
  return End(key, features, /*to_disk=*/true);
}

FeatureCache::Calls FeatureCache::End(const std::string& key,
                                      const std::shared_ptr<const Features>& features,
                                      bool to_disk) {
  MutexLock lock(mutex_);
  UnderWay ended;
  if (const auto found = under_way_.find(key); found != under_way_.end()) {
    ended = std::move(found->second);
    followers_ -= ended.calls.size() - 1;
    under_way_.erase(found);
  }
  if (features && ended.keep) {
    Keep(key, features);
    // Under the lock: a Drop comes before all of this, or behind it.
    if (disk_ && to_disk) disk_->Write(features);
  }
  return std::move(ended.calls);
}

void FeatureCache::Drop(const PictureSet& pictures, FeatureDisk::Dropped done) {
  size_t dropped = 0;
  {
    MutexLock lock(mutex_);
    dropped = recent_.RemoveIf(
        [&](const auto& entry) { return pictures.contains(PictureOfKey(entry.key)); });
    Show();
    for (auto& [key, work] : under_way_) {
      if (pictures.contains(PictureOfKey(key))) work.keep = false;
    }
    // Under the lock: nobody may begin in between and find the old file.
    if (disk_) {
      disk_->Drop(pictures, [dropped, done = std::move(done)](absl::StatusOr<size_t> files) {
        if (files.ok()) *files += dropped;
        done(std::move(files));
      });
      return;
    }
  }
  done(dropped);
}

void FeatureCache::Show() {
  bytes_gauge_.Set(static_cast<double>(recent_.bytes()));
  entries_gauge_.Set(static_cast<double>(recent_.size()));
}

void FeatureCache::Keep(const std::string& key, std::shared_ptr<const Features> features) {
  const uint64_t size = features->bytes.size() + key.size();
  if (size > budget_bytes_ || recent_.contains(key)) return;
  while (recent_.bytes() + size > budget_bytes_) {
    recent_.RemoveOldest();
    evictions_.Increment();
  }
  recent_.Put(key, size, std::move(features));
  Show();
}

uint64_t FeatureCache::size_bytes() const {
  MutexLock lock(mutex_);
  return recent_.bytes();
}

size_t FeatureCache::entries() const {
  MutexLock lock(mutex_);
  return recent_.size();
}

v1::FeatureCacheStatus FeatureCache::status() const {
  v1::FeatureCacheStatus status;
  status.set_entries(entries());
  status.set_bytes(size_bytes());
  status.set_budget_bytes(budget_bytes_);
  status.set_hits(static_cast<uint64_t>(hits_.Value()));
  status.set_misses(static_cast<uint64_t>(misses_.Value()));
  status.set_evictions(static_cast<uint64_t>(evictions_.Value()));
  if (disk_) *status.mutable_disk() = disk_->status();
  return status;
}

size_t FeatureCache::followers() const {
  MutexLock lock(mutex_);
  return followers_;
}

}  // namespace llava
