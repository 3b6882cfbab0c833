#pragma once

// Who is at work on which session: one turn at a time.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/runtime/mutex.h"

namespace llava {

// Why an answer is broken off from outside.
enum class TurnBreak { kClientGone, kCancelTurn, kShutdown };

// Thread-safe; callbacks run outside of its lock.
class RunningTurns {
 public:
  using Cancel = std::function<void(TurnBreak)>;

  // Takes `key` (a session id, or any unique text for a call without session). ABORTED when it is
  // taken. `cancel` may come from any thread until Remove. An empty `turn_id` keeps turns away
  // while the session is being deleted, and cannot be broken off.
  absl::Status Add(const std::string& key, const std::string& turn_id, Cancel cancel);
  // Gives it back and runs what waited for that.
  void Remove(const std::string& key);

  // Breaks off the turn of `key`, if `turn_id` is empty or its own. `ended` runs after its Remove.
  // False: no such turn is running, and `ended` will not run.
  bool Break(const std::string& key, const std::string& turn_id, TurnBreak why,
             std::function<void()> ended);
  void BreakAll(TurnBreak why);

 private:
  struct Entry {
    std::string turn_id;
    Cancel cancel;
    std::vector<std::function<void()>> waiting;
  };

  Mutex mutex_;
  std::map<std::string, Entry> entries_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
