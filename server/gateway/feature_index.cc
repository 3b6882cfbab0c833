#include "server/gateway/feature_index.h"

#include <utility>

#include "model/digest/sha256.h"
#include "server/wire/feature_key.h"

namespace llava {
namespace {

// Short enough to lie in the string itself: there are thousands. Two keys of one name would cost
// one more round trip.
std::string NameOf(const v1::FeatureKey& key) {
  return ToBytes(HashBytes(FeatureKeyToBytes(key))).substr(0, 15);
}

}  // namespace

bool FeatureIndex::Contains(const v1::FeatureKey& key) {
  const std::string name = NameOf(key);
  MutexLock lock(mutex_);
  const auto found = keys_.find(name);
  if (found == keys_.end()) return false;
  order_.splice(order_.begin(), order_, found->second);
  return true;
}

void FeatureIndex::Add(const v1::FeatureKey& key) {
  const std::string name = NameOf(key);
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
  const auto found = keys_.find(NameOf(key));
  if (found == keys_.end()) return;
  order_.erase(found->second);
  keys_.erase(found);
}

FeatureIndex::State FeatureIndex::Claim(const v1::FeatureKey& key, std::function<void()> then,
                                        uint64_t* ticket) {
  const std::string name = NameOf(key);
  MutexLock lock(mutex_);
  if (keys_.contains(name)) return State::kThere;
  const auto [place, missing] = coming_.try_emplace(name);
  if (missing) return State::kMissing;
  *ticket = ++tickets_;
  place->second.push_back({*ticket, std::move(then)});
  return State::kComing;
}

void FeatureIndex::Release(const v1::FeatureKey& key) {
  std::vector<Waiter> waiters;
  {
    MutexLock lock(mutex_);
    const auto found = coming_.find(NameOf(key));
    if (found == coming_.end()) return;
    waiters = std::move(found->second);
    coming_.erase(found);
  }
  for (const Waiter& waiter : waiters) waiter.then();
}

bool FeatureIndex::Abandon(uint64_t ticket) {
  MutexLock lock(mutex_);
  for (auto& [key, waiters] : coming_) {
    if (std::erase_if(waiters, [&](const Waiter& each) { return each.ticket == ticket; }) > 0) {
      return true;
    }
  }
  return false;
}

}  // namespace llava
