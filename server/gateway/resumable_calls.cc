#include "server/gateway/resumable_calls.h"

#include <utility>

namespace llava {

void ResumableCalls::Keep(const std::string& turn_id, const Caller& owner,
                          std::shared_ptr<LiveAnswer> answer) {
  MutexLock lock(mutex_);
  entries_[turn_id] = {owner.name(), std::move(answer), std::nullopt};
}

void ResumableCalls::Ended(const std::string& turn_id, Clock::time_point now) {
  MutexLock lock(mutex_);
  const auto found = entries_.find(turn_id);
  if (found == entries_.end() || found->second.ended) return;
  found->second.ended = now;
  ended_.emplace(now, turn_id);
  while (ended_.size() > most_) {
    entries_.erase(ended_.begin()->second);
    ended_.erase(ended_.begin());
  }
}

std::shared_ptr<LiveAnswer> ResumableCalls::Find(const std::string& turn_id,
                                                 const Caller& caller) const {
  MutexLock lock(mutex_);
  const auto found = entries_.find(turn_id);
  if (found == entries_.end()) return nullptr;
  if (!caller.is_admin() && caller.name() != found->second.owner) return nullptr;
  return found->second.answer;
}

void ResumableCalls::Expire(Clock::time_point now) {
  MutexLock lock(mutex_);
  while (!ended_.empty() && now - ended_.begin()->first > grace_) {
    entries_.erase(ended_.begin()->second);
    ended_.erase(ended_.begin());
  }
}

}  // namespace llava
