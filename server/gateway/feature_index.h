#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "llava/v1/types.pb.h"
#include "server/runtime/mutex.h"

namespace llava {

// Which features an LLM service is believed to hold, and which are on their way there. Only a
// belief: the service says what it lacks, so a wrong entry costs one more round trip. The least
// recently used keys are forgotten first. Memory for all that it may hold, 70 bytes a key, is set
// aside at once: a process that sees ever new pictures must not grow for hours. Thread-safe.
class FeatureIndex {
 public:
  explicit FeatureIndex(uint32_t capacity = 16'384);

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
  using Name = std::array<uint8_t, 16>;
  // Part of a ring from the key that was used last to the one to forget first.
  struct Entry {
    Name name;
    uint32_t older, newer;
  };

  // Two keys of one name would cost one more round trip.
  static Name NameOf(const v1::FeatureKey& key);
  void PutFirst(uint32_t place) LLAVA_REQUIRES(mutex_);
  void TakeOut(uint32_t place) LLAVA_REQUIRES(mutex_);
  // Nothing happens if it is not there.
  void Forget(const Name& name) LLAVA_REQUIRES(mutex_);

  struct Waiter {
    uint64_t ticket;
    std::function<void()> then;
  };

  Mutex mutex_;
  std::vector<Entry> entries_ LLAVA_GUARDED_BY(mutex_);   // the first is no key but the ring's ends
  std::vector<uint32_t> spare_ LLAVA_GUARDED_BY(mutex_);  // places without a key
  absl::flat_hash_map<Name, uint32_t> places_ LLAVA_GUARDED_BY(mutex_);
  absl::flat_hash_map<Name, std::vector<Waiter>> coming_ LLAVA_GUARDED_BY(mutex_);
  uint64_t tickets_ LLAVA_GUARDED_BY(mutex_) = 0;
};

}  // namespace llava
