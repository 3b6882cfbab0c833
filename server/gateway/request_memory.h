#pragma once

// What requests hold in memory, all together.

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"

namespace llava {

// One budget for the pictures that are being uploaded, for questions with their pictures, while
// these wait and are answered, and for other requests until their clients have the answers. However
// many requests an API key has, it leaves as much room as it takes: the next key finds half of what
// there was. Thread-safe; outlives its shares.
class RequestMemory {
 public:
  RequestMemory(uint64_t limit, Metrics& metrics);

  // Of each request that do not count, so that short questions pass.
  static constexpr uint64_t kFreeBytes = 16u << 10;

  // What one request holds; gives it back at its end. One thread at a time.
  class Share {
   public:
    explicit Share(RequestMemory& memory, uint64_t free_bytes = kFreeBytes)
        : memory_(memory), free_bytes_(free_bytes) {}
    ~Share();
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // Holds `bytes` from now on, if that is more than before; the first `free_bytes` do not
    // count. `key`: name of the caller's API key, the same each time; empty:
    // there are no keys. Errors with RetryInfo: UNAVAILABLE: there is no room for them.
    // RESOURCE_EXHAUSTED: with its other requests the key would hold more than it leaves.
    absl::Status Hold(uint64_t bytes, const std::string& key);

   private:
    RequestMemory& memory_;
    const uint64_t free_bytes_;
    std::string key_;
    uint64_t counted_ = 0;
  };

  std::shared_ptr<Share> NewShare(uint64_t free_bytes = kFreeBytes) {
    return std::make_shared<Share>(*this, free_bytes);
  }

 private:
  const uint64_t limit_;
  prometheus::Gauge& gauge_;

  Mutex mutex_;
  uint64_t used_ LLAVA_GUARDED_BY(mutex_) = 0;
  std::map<std::string, uint64_t> used_by_ LLAVA_GUARDED_BY(mutex_);  // by key, without the empty
};

}  // namespace llava
