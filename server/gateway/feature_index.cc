#include "server/gateway/feature_index.h"

#include <algorithm>
#include <utility>

#include "model/digest/sha256.h"
#include "server/wire/feature_key.h"

namespace llava {

FeatureIndex::FeatureIndex(uint32_t capacity) {
  entries_.resize(capacity + 1);
  entries_[0] = {.name = {}, .older = 0, .newer = 0};
  spare_.reserve(capacity);
  for (uint32_t place = capacity; place > 0; --place) spare_.push_back(place);
  places_.reserve(capacity);
}

FeatureIndex::Name FeatureIndex::NameOf(const v1::FeatureKey& key) {
  const Sha256Digest digest = HashBytes(FeatureKeyToBytes(key));
  Name name;
  std::copy_n(digest.begin(), name.size(), name.begin());
  return name;
}

void FeatureIndex::PutFirst(uint32_t place) {
  const uint32_t second = entries_[0].older;
  entries_[place].newer = 0;
  entries_[place].older = second;
  entries_[0].older = entries_[second].newer = place;
}

void FeatureIndex::TakeOut(uint32_t place) {
  const auto [older, newer] = std::pair(entries_[place].older, entries_[place].newer);
  entries_[newer].older = older;
  entries_[older].newer = newer;
}

void FeatureIndex::Forget(const Name& name) {
  const auto found = places_.find(name);
  if (found == places_.end()) return;
  TakeOut(found->second);
  spare_.push_back(found->second);
  places_.erase(found);
}

bool FeatureIndex::Contains(const v1::FeatureKey& key) {
  const Name name = NameOf(key);
  MutexLock lock(mutex_);
  const auto found = places_.find(name);
  if (found == places_.end()) return false;
  TakeOut(found->second);
  PutFirst(found->second);
  return true;
}

void FeatureIndex::Add(const v1::FeatureKey& key) {
  const Name name = NameOf(key);
  MutexLock lock(mutex_);
  Forget(name);
  if (spare_.empty()) Forget(entries_[entries_[0].newer].name);
  const uint32_t place = spare_.back();
  spare_.pop_back();
  entries_[place].name = name;
  PutFirst(place);
  places_[name] = place;
}

void FeatureIndex::Remove(const v1::FeatureKey& key) {
  const Name name = NameOf(key);
  MutexLock lock(mutex_);
  Forget(name);
}

FeatureIndex::State FeatureIndex::Claim(const v1::FeatureKey& key, std::function<void()> then,
                                        uint64_t* ticket) {
  const Name name = NameOf(key);
  MutexLock lock(mutex_);
  if (places_.contains(name)) return State::kThere;
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
