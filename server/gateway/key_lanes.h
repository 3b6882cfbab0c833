#pragma once

// Calls of one API key, so many at a time.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "server/runtime/mutex.h"

namespace llava {

// Whoever comes when a key has its fill waits its turn; other keys do not wait for it. Thread-safe.
class KeyLanes {
 public:
  // Held by a call until it is over. May outlive the lanes.
  using Place = std::shared_ptr<void>;
  using Work = std::function<void(Place)>;

  // `most` places for each key.
  explicit KeyLanes(size_t most) : state_(std::make_shared<State>(most)) {}

  // `work` runs within this call or where another one's place goes; it must not block.
  void Enter(const std::string& key, Work work);

 private:
  struct Lane {
    size_t taken = 0;
    bool running = false;  // works are being started: one after the other, not within each other
    std::deque<Work> waiting;
  };
  struct State {
    explicit State(size_t places) : most(places) {}
    const size_t most;
    Mutex mutex;
    std::map<std::string, Lane> lanes LLAVA_GUARDED_BY(mutex);
  };

  // Starts what has a place.
  static void Run(const std::shared_ptr<State>& state, const std::string& key);
  static void Leave(const std::shared_ptr<State>& state, const std::string& key);

  const std::shared_ptr<State> state_;
};

}  // namespace llava
