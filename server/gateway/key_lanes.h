#pragma once

// Calls of one API key, so many at a time.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "server/runtime/mutex.h"

namespace llava {

// Whoever comes when a key has its fill waits its turn; other keys do not wait for it. Thread-safe.
class KeyLanes {
 public:
  // Held by a call until it is over. May outlive the lanes.
  using Place = std::shared_ptr<void>;
  using Work = std::function<void(Place)>;

  // `most` places for each key, and so many may wait.
  KeyLanes(size_t most, size_t most_waiting)
      : state_(std::make_shared<State>(most, most_waiting)) {}

  // `work` of the call `who` runs within this call or where another one's place goes; it must not
  // block. RESOURCE_EXHAUSTED with RetryInfo: too many wait.
  absl::Status Enter(const std::string& key, const void* who, Work work);
  // Whether `who` waited; its work will not run.
  bool TakeBack(const std::string& key, const void* who);

 private:
  struct Lane {
    size_t taken = 0;
    bool running = false;  // works are being started: one after the other, not within each other
    std::deque<std::pair<const void*, Work>> waiting;
  };
  struct State {
    State(size_t places, size_t waiting) : most(places), most_waiting(waiting) {}
    const size_t most, most_waiting;
    Mutex mutex;
    std::map<std::string, Lane> lanes LLAVA_GUARDED_BY(mutex);
  };

  // Starts what has a place.
  static void Run(const std::shared_ptr<State>& state, const std::string& key);
  static void Leave(const std::shared_ptr<State>& state, const std::string& key);

  const std::shared_ptr<State> state_;
};

}  // namespace llava
