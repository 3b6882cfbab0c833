#include "server/gateway/feature_index.h"

#include "server/wire/feature_key.h"

namespace llava {

bool FeatureIndex::Contains(const v1::FeatureKey& key) {
  const std::string name = FeatureKeyToBytes(key);
  MutexLock lock(mutex_);
  const auto found = keys_.find(name);
  if (found == keys_.end()) return false;
  order_.splice(order_.begin(), order_, found->second);
  return true;
}

void FeatureIndex::Add(const v1::FeatureKey& key) {
  const std::string name = FeatureKeyToBytes(key);
  MutexLock lock(mutex_);
  if (const auto found = keys_.find(name); found != keys_.end()) {
    order_.splice(order_.begin(), order_, found->second);
    return;
  }
  order_.push_front(name);
  keys_[name] = order_.begin();
  if (keys_.size() > capacity_) {
    keys_.erase(order_.back());
    order_.pop_back();
  }
}

void FeatureIndex::Remove(const v1::FeatureKey& key) {
  MutexLock lock(mutex_);
  const auto found = keys_.find(FeatureKeyToBytes(key));
  if (found == keys_.end()) return;
  order_.erase(found->second);
  keys_.erase(found);
}

}  // namespace llava
