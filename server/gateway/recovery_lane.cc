#include "server/gateway/recovery_lane.h"

#include <utility>
#include <vector>

namespace llava {

void RecoveryLane::Open() {
  {
    MutexLock lock(mutex_);
    open_ = true;
  }
  Dispatch();
}

void RecoveryLane::Enter(const void* turn, bool suspect, std::function<void()> step) {
  {
    MutexLock lock(mutex_);
    (suspect ? suspects_ : waiting_).push_back({turn, std::move(step)});
  }
  Dispatch();
}

bool RecoveryLane::Remove(const void* turn) {
  std::function<void()> step;  // holds the turn: goes outside of the lock
  MutexLock lock(mutex_);
  for (auto* queue : {&waiting_, &suspects_}) {
    for (auto it = queue->begin(); it != queue->end(); ++it) {
      if (it->turn != turn) continue;
      step = std::move(it->step);
      queue->erase(it);
      return true;
    }
  }
  return false;
}

void RecoveryLane::Leave() {
  {
    MutexLock lock(mutex_);
    --inside_;
    suspect_inside_ = false;  // one that was inside was alone
  }
  Dispatch();
}

void RecoveryLane::Dispatch() {
  std::vector<std::function<void()>> steps;
  {
    MutexLock lock(mutex_);
    while (open_ && !suspect_inside_) {
      const bool suspect = waiting_.empty();
      if (suspect ? suspects_.empty() || inside_ > 0 : inside_ >= at_once_) break;
      auto& queue = suspect ? suspects_ : waiting_;
      steps.push_back(std::move(queue.front().step));
      queue.pop_front();
      ++inside_;
      suspect_inside_ = suspect;
    }
  }
  for (const auto& step : steps) step();
}

}  // namespace llava
