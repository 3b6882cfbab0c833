#pragma once

// Clients that take nothing of what is sent to them.

#include <chrono>
#include <functional>
#include <utility>
#include <vector>

#include "server/runtime/mutex.h"

namespace llava {

// Thread-safe.
class SendWatch {
 public:
  using Clock = std::chrono::steady_clock;
  // Ends its call if that has waited since before `since` for its client. False: it is over.
  using Check = std::function<bool(Clock::time_point since)>;

  void Add(Check check) {
    MutexLock lock(mutex_);
    checks_.push_back(std::move(check));
  }
  // Now and then.
  void CheckAll(Clock::time_point since) {
    std::vector<Check> checks;
    {
      MutexLock lock(mutex_);
      checks.swap(checks_);
    }
    std::erase_if(checks, [since](const Check& check) { return !check(since); });
    MutexLock lock(mutex_);
    for (Check& check : checks) checks_.push_back(std::move(check));
  }

 private:
  Mutex mutex_;
  std::vector<Check> checks_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
