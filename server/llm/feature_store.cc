#include "server/llm/feature_store.h"

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
  Kept* const kept = recent_.Find(key);
  if (kept != nullptr) kept->pinned_until = now + pin_time_;
  return kept != nullptr;
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
  if (recent_.contains(key)) return absl::OkStatus();  // put by another call just now
  if (!MakeRoom(size, now)) {
    return OverloadedError(
        absl::StrCat("feature store: all ", budget_bytes_,
                     " bytes (--feature-store-bytes) are in use by running answers or fresh "
                     "features; try again"),
        std::chrono::duration_cast<std::chrono::milliseconds>(pin_time_) / 10);
  }
  recent_.Put(key, size, {std::move(shared), now + pin_time_});
  Show();
  return absl::OkStatus();
}

void FeatureStore::Show() {
  bytes_gauge_.Set(static_cast<double>(recent_.bytes()));
  entries_gauge_.Set(static_cast<double>(recent_.size()));
}

size_t FeatureStore::Drop(const PictureSet& pictures) {
  MutexLock lock(mutex_);
  const size_t dropped = recent_.RemoveIf(
      [&](const auto& entry) { return pictures.contains(PictureOfKey(entry.key)); });
  Show();
  return dropped;
}

bool FeatureStore::MakeRoom(uint64_t size, Clock::time_point now) {
  if (recent_.bytes() + size <= budget_bytes_) return true;
  // Pointers are only handed out under the lock, so a count of one cannot grow behind our back.
  const auto needed = [now](const auto& entry) {
    return entry.value.pinned_until > now || entry.value.features.use_count() > 1;
  };
  uint64_t needed_bytes = 0;
  for (const auto& entry : recent_.entries()) needed_bytes += needed(entry) ? entry.bytes : 0;
  if (needed_bytes + size > budget_bytes_) return false;
  const size_t evicted = recent_.RemoveIf(
      [&](const auto& entry) { return recent_.bytes() + size > budget_bytes_ && !needed(entry); });
  evictions_.Increment(static_cast<double>(evicted));
  return true;
}

std::shared_ptr<const StoredFeatures> FeatureStore::Get(const std::string& key) {
  MutexLock lock(mutex_);
  const Kept* const kept = recent_.Find(key);
  (kept != nullptr ? hits_ : misses_).Increment();
  return kept != nullptr ? kept->features : nullptr;
}

uint64_t FeatureStore::size_bytes() const {
  MutexLock lock(mutex_);
  return recent_.bytes();
}

size_t FeatureStore::entries() const {
  MutexLock lock(mutex_);
  return recent_.size();
}

}  // namespace llava
