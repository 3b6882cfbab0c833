#pragma once

// Calls without a turn that wait for a service behind: they end when the process wants to.

#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "server/runtime/mutex.h"

namespace llava {

// Thread-safe; what stops a call runs outside of its lock.
class StoppableCalls {
 public:
  // False: Stop has run. `stop` may still run while the call removes itself, or after; it must not
  // block.
  bool Add(const void* call, std::function<void()> stop) {
    MutexLock lock(mutex_);
    if (!stopped_) calls_[call] = std::move(stop);
    return !stopped_;
  }
  void Remove(const void* call) {
    MutexLock lock(mutex_);
    calls_.erase(call);
  }
  // Stops those under way, and takes no other.
  void Stop() {
    std::vector<std::function<void()>> stops;
    {
      MutexLock lock(mutex_);
      stopped_ = true;
      for (const auto& [call, stop] : calls_) stops.push_back(stop);
    }
    for (const auto& stop : stops) stop();
  }

 private:
  Mutex mutex_;
  bool stopped_ LLAVA_GUARDED_BY(mutex_) = false;
  std::map<const void*, std::function<void()>> calls_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
