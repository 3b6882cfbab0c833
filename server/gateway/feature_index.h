#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <unordered_map>
#include <vector>

#include "llava/v1/types.pb.h"
#include "server/runtime/mutex.h"

namespace llava {

// Which features an LLM service is believed to hold, and which are on their way there. Only a
// belief: the service says what it lacks, so a wrong entry costs one more round trip. The least
// recently used keys are forgotten first. Thread-safe.
class FeatureIndex {
 public:
  explicit FeatureIndex(size_t capacity = 16'384) : capacity_(capacity) {}

  bool Contains(const v1::FeatureKey& key);
  void Add(const v1::FeatureKey& key);
  void Remove(const v1::FeatureKey& key);

  enum class State {
    kThere,
    kComing,   // somebody brings them; `then` runs when that has ended, well or not
    kMissing,  // the caller brings them now, and calls Release at the end
  };
  // So that several turns about one picture bring its features once. `ticket` is set for kComing;
  // `then` runs on the thread of Release and may run before Claim returns.
  State Claim(const v1::FeatureKey& key, std::function<void()> then, uint64_t* ticket);
  // Ends a claim; the caller has called Add before if the features came.
  void Release(const v1::FeatureKey& key);
  // Waits no longer. False: `then` has run or is about to.
  bool Abandon(uint64_t ticket);

 private:
  using Order = std::list<std::string>;
  struct Waiter {
    uint64_t ticket;
    std::function<void()> then;
  };

  const size_t capacity_;
  Mutex mutex_;
  Order order_ LLAVA_GUARDED_BY(mutex_);  // last used first
  std::unordered_map<std::string, Order::iterator> keys_ LLAVA_GUARDED_BY(mutex_);
  std::unordered_map<std::string, std::vector<Waiter>> coming_ LLAVA_GUARDED_BY(mutex_);
  uint64_t tickets_ LLAVA_GUARDED_BY(mutex_) = 0;
};

}  // namespace llava
