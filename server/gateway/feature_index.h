#pragma once

#include <cstddef>
#include <list>
#include <string>
#include <unordered_map>

#include "llava/v1/types.pb.h"
#include "server/runtime/mutex.h"

namespace llava {

// Which features the LLM service is believed to hold. Only a belief: the service says what it
// lacks, so a wrong entry costs one more round trip. The least recently used keys are forgotten
// first. Thread-safe.
class FeatureIndex {
 public:
  explicit FeatureIndex(size_t capacity = 16'384) : capacity_(capacity) {}

  bool Contains(const v1::FeatureKey& key);
  void Add(const v1::FeatureKey& key);
  void Remove(const v1::FeatureKey& key);

 private:
  using Order = std::list<std::string>;

  const size_t capacity_;
  Mutex mutex_;
  Order order_ LLAVA_GUARDED_BY(mutex_);  // last used first
  std::unordered_map<std::string, Order::iterator> keys_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
