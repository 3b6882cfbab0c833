#pragma once

// Features that answers read: put by the gateway, kept while they may be needed.

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "model/config/model_config.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/recent_bytes.h"
#include "server/wire/feature_key.h"

namespace llava {

enum class FeatureType { kFloat32, kFloat16, kBFloat16 };

// Z_v of one picture as it came over the wire. Const once shared.
struct StoredFeatures {
  FeatureType type = FeatureType::kBFloat16;
  int64_t rows = 0;         // as PictureShape says for its size
  int64_t width = 0;        // Dv
  std::string bytes;        // [rows, Dv] row-major, little-endian
  Resolution picture = {};  // in pixels; zeros: not told
};

// Thread-safe. Keys: FeatureKeyToBytes. An entry stays while somebody else holds its pointer and
// for `pin_time` after it was put (or put again); beyond that the least recently used leave first
// when the budget is short. Time is an argument.
class FeatureStore {
 public:
  using Clock = std::chrono::steady_clock;

  FeatureStore(uint64_t budget_bytes, Clock::duration pin_time, Metrics& metrics);

  // Pins `key` anew if it is there; false if it is not.
  bool Renew(const std::string& key, Clock::time_point now);
  // Keeps `features` (a second Put of a key renews the first one). UNAVAILABLE with a time to retry
  // after: what is pinned leaves no room. RESOURCE_EXHAUSTED: larger than the whole budget.
  absl::Status Put(const std::string& key, StoredFeatures features, Clock::time_point now);
  // Null if it is not there. Counts a hit or a miss.
  std::shared_ptr<const StoredFeatures> Get(const std::string& key);

  // Forgets the features of these pictures, pinned or not; who holds a pointer keeps it. Returns
  // how many were there.
  size_t Drop(const PictureSet& pictures);

  uint64_t size_bytes() const;
  size_t entries() const;

 private:
  struct Kept {
    std::shared_ptr<const StoredFeatures> features;
    Clock::time_point pinned_until;
  };
  // Drops the least recently used that nobody needs until `size` more bytes fit. False: they cannot
  // fit, and nothing was dropped.
  bool MakeRoom(uint64_t size, Clock::time_point now) LLAVA_REQUIRES(mutex_);
  void Show() LLAVA_REQUIRES(mutex_);

  const uint64_t budget_bytes_;
  const Clock::duration pin_time_;
  prometheus::Gauge& bytes_gauge_;
  prometheus::Gauge& entries_gauge_;
  prometheus::Counter& hits_;
  prometheus::Counter& misses_;
  prometheus::Counter& evictions_;

  mutable Mutex mutex_;
  RecentBytes<Kept> recent_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
