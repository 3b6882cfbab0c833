#include "server/llm/feature_store.h"

#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/status.h"

namespace llava {

FeatureStore::FeatureStore(uint64_t budget_bytes, Clock::duration pin_time, Metrics& metrics)
    : budget_bytes_(budget_bytes),
      pin_time_(pin_time),
      bytes_gauge_(metrics.Gauge("llava_llm_feature_store_bytes", "Bytes of features kept")),
      entries_gauge_(
          metrics.Gauge("llava_llm_feature_store_entries", "Pictures whose features are kept")),
      hits_(metrics.Counter("llava_llm_feature_store_hits_total",
                            "Pictures of requests whose features were there")),
      misses_(metrics.Counter("llava_llm_feature_store_misses_total",
                              "Pictures of requests whose features had to be put first")),
      evictions_(metrics.Counter("llava_llm_feature_store_evictions_total",
                                 "Features dropped to keep the byte budget")) {}

bool FeatureStore::Renew(const std::string& key, Clock::time_point now) {
  MutexLock lock(mutex_);
  const auto found = index_.find(key);
  if (found == index_.end()) return false;
  found->second->pinned_until = now + pin_time_;
  recent_.splice(recent_.begin(), recent_, found->second);
  return true;
}

absl::Status FeatureStore::Put(const std::string& key, StoredFeatures features,
                               Clock::time_point now) {
  if (Renew(key, now)) return absl::OkStatus();
  const uint64_t size = features.bytes.size();
  if (size > budget_bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat("features of ", size,
                                                     " bytes; the whole store has ", budget_bytes_,
                                                     " (--feature-store-bytes)"));
  }
  auto shared = std::make_shared<const StoredFeatures>(std::move(features));
  MutexLock lock(mutex_);
  if (index_.contains(key)) return absl::OkStatus();  // put by another call just now
  if (!MakeRoom(size, now)) {
    return OverloadedError(
        absl::StrCat("feature store: all ", budget_bytes_,
                     " bytes (--feature-store-bytes) are in use by running answers or fresh "
                     "features; try again"),
        std::chrono::duration_cast<std::chrono::milliseconds>(pin_time_) / 10);
  }
  bytes_ += size;
  recent_.push_front({key, std::move(shared), now + pin_time_});
  index_[key] = recent_.begin();
  Show();
  return absl::OkStatus();
}

FeatureStore::Place FeatureStore::Remove(Place place) {
  bytes_ -= place->features->bytes.size();
  index_.erase(place->key);
  return recent_.erase(place);
}

void FeatureStore::Show() {
  bytes_gauge_.Set(static_cast<double>(bytes_));
  entries_gauge_.Set(static_cast<double>(recent_.size()));
}

size_t FeatureStore::Drop(const PictureSet& pictures) {
  MutexLock lock(mutex_);
  const size_t before = recent_.size();
  for (auto it = recent_.begin(); it != recent_.end();) {
    it = pictures.contains(PictureOfKey(it->key)) ? Remove(it) : std::next(it);
  }
  Show();
  return before - recent_.size();
}

bool FeatureStore::MakeRoom(uint64_t size, Clock::time_point now) {
  if (bytes_ + size <= budget_bytes_) return true;
  // Pointers are only handed out under the lock, so a count of one cannot grow behind our back.
  const auto needed = [now](const Entry& entry) {
    return entry.pinned_until > now || entry.features.use_count() > 1;
  };
  uint64_t needed_bytes = 0;
  for (const Entry& entry : recent_) {
    if (needed(entry)) needed_bytes += entry.features->bytes.size();
  }
  if (needed_bytes + size > budget_bytes_) return false;
  auto it = recent_.end();
  while (bytes_ + size > budget_bytes_ && it != recent_.begin()) {
    --it;
    if (needed(*it)) continue;
    it = Remove(it);
    evictions_.Increment();
  }
  return true;
}

std::shared_ptr<const StoredFeatures> FeatureStore::Get(const std::string& key) {
  MutexLock lock(mutex_);
  const auto found = index_.find(key);
  if (found == index_.end()) {
    misses_.Increment();
    return nullptr;
  }
  hits_.Increment();
  recent_.splice(recent_.begin(), recent_, found->second);
  return found->second->features;
}

uint64_t FeatureStore::size_bytes() const {
  MutexLock lock(mutex_);
  return bytes_;
}

size_t FeatureStore::entries() const {
  MutexLock lock(mutex_);
  return recent_.size();
}

}  // namespace llava
