#pragma once

// Features that are there (least recently used leave first) or on their way (one computation serves
// all who ask meanwhile), in memory and perhaps on disk. One for all towers of the process: a key
// holds the tower's digest.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "llava/v1/models.pb.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/recent_bytes.h"
#include "server/vision/feature_disk.h"
#include "server/vision/features.h"
#include "server/wire/feature_key.h"

namespace llava {

// Thread-safe. Keys: FeatureKeyToBytes.
class FeatureCache {
 public:
  using Calls = std::vector<std::shared_ptr<EncodeCall>>;

  // `budget_bytes` bounds what is kept, keys included; 0 keeps nothing (computations are still
  // shared). `disk`: what is made is written there too, and looked for.
  FeatureCache(uint64_t budget_bytes, Metrics& metrics, std::unique_ptr<FeatureDisk> disk = {});

  struct Begun {
    std::shared_ptr<const Features> features;  // set: a hit, nothing more to do
    bool leader = false;  // true: the caller computes and calls Finish; else somebody does already
  };
  Begun Begin(const std::string& key, std::shared_ptr<EncodeCall> call);

  // Calls of a computation under way that are over before it began: client gone, or deadline passed
  // at `now`. They are taken out; `ended`: none is left and the computation is off.
  struct Pruned {
    Calls gone, expired;
    bool ended = false;
  };
  Pruned Prune(const std::string& key, EncodeCall::Clock::time_point now);

  // For a leader, before it computes: if the disk has the features, ends the computation with them.
  // May block on the disk.
  struct Found {
    std::shared_ptr<const Features> features;  // null: not there, the leader goes on
    Calls calls;                               // who waited
  };
  Found FinishFromDisk(const std::string& key);

  // Ends the computation of `key`: keeps `features` (null: it failed) and returns who waited.
  Calls Finish(const std::string& key, std::shared_ptr<const Features> features);

  // Forgets the features of these pictures; computations of theirs end as they would, but nothing
  // is kept. `done` gets how many tensors were there, or what FeatureDisk::Drop says, on the disk's
  // thread if there is a disk.
  void Drop(const PictureSet& pictures, FeatureDisk::Dropped done);

  uint64_t size_bytes() const;
  size_t entries() const;
  v1::FeatureCacheStatus status() const;
  // Calls that wait for a computation which another call began.
  size_t followers() const;

 private:
  struct UnderWay {
    Calls calls;
    bool keep = true;  // false: dropped meanwhile
  };
  // `to_disk`: they are not from there.
  Calls End(const std::string& key, const std::shared_ptr<const Features>& features, bool to_disk);
  void Show() LLAVA_REQUIRES(mutex_);
  void Keep(const std::string& key, std::shared_ptr<const Features> features)
      LLAVA_REQUIRES(mutex_);

  const uint64_t budget_bytes_;
  const std::unique_ptr<FeatureDisk> disk_;
  prometheus::Gauge& bytes_gauge_;
  prometheus::Gauge& entries_gauge_;
  prometheus::Counter& hits_;
  prometheus::Counter& misses_;
  prometheus::Counter& evictions_;

  mutable Mutex mutex_;
  RecentBytes<std::shared_ptr<const Features>> recent_ LLAVA_GUARDED_BY(mutex_);
  std::map<std::string, UnderWay> under_way_ LLAVA_GUARDED_BY(mutex_);
  size_t followers_ LLAVA_GUARDED_BY(mutex_) = 0;  // all calls of under_way_ but one of each key
};

}  // namespace llava
