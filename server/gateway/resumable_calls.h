#pragma once

// Answers without a session whose readers may come back to them.

#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "server/gateway/api_keys.h"
#include "server/gateway/live_answer.h"
#include "server/runtime/mutex.h"

namespace llava {

// Keeps each from its begin until `grace` after its end; of those that have ended at most `most`,
// the oldest go first. In memory: the next process knows none of them. Thread-safe.
class ResumableCalls {
 public:
  using Clock = std::chrono::steady_clock;

  explicit ResumableCalls(std::chrono::milliseconds grace, size_t most = 4096)
      : grace_(grace), most_(most) {}

  void Keep(const std::string& turn_id, const Caller& owner, std::shared_ptr<LiveAnswer> answer);
  // Nothing happens if it is not kept.
  void Ended(const std::string& turn_id, Clock::time_point now = Clock::now());
  // Null: there is none of this id, or it is somebody else's.
  std::shared_ptr<LiveAnswer> Find(const std::string& turn_id, const Caller& caller) const;
  // Forgets those whose time is over.
  void Expire(Clock::time_point now = Clock::now());

 private:
  struct Entry {
    std::string owner;
    std::shared_ptr<LiveAnswer> answer;
    std::optional<Clock::time_point> ended;
  };

  const std::chrono::milliseconds grace_;
  const size_t most_;
  mutable Mutex mutex_;
  std::map<std::string, Entry> entries_ LLAVA_GUARDED_BY(mutex_);  // by turn id
  std::multimap<Clock::time_point, std::string> ended_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
