#pragma once

// What an engine did since it was made, for status calls; metrics are of the whole process.

#include <chrono>
#include <cstdint>
#include <map>

#include "server/runtime/mutex.h"

namespace llava {

struct EncodeStatistics {
  struct Sum {
    uint64_t count = 0;
    double seconds = 0;
    void Add(double more, uint64_t times = 1) {
      count += times;
      seconds += more;
    }
  };
  // Requests for a picture, whatever protocol they came by.
  Sum success, failure;
  Sum queue, decode, compute;  // of pictures that were computed; compute: that of their batch
  Sum cache_hit, cache_miss;
  uint64_t encoded = 0;           // pictures through the tower
  std::map<size_t, Sum> batches;  // by size
  uint64_t nan_outputs = 0;       // pictures for which the tower gave no number
  std::chrono::system_clock::time_point last_request{};
};

// Thread-safe.
class EncodeStatisticsBook {
 public:
  template <typename Change>
  void Update(const Change& change) {
    MutexLock lock(mutex_);
    change(statistics_);
  }
  EncodeStatistics Snapshot() const {
    MutexLock lock(mutex_);
    return statistics_;
  }

 private:
  mutable Mutex mutex_;
  EncodeStatistics statistics_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
