#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

// std::mutex with clang's thread-safety annotations (no-ops for GCC). Used instead of absl::Mutex
// because ThreadSanitizer can see it: the distribution's abseil is built without.
#if defined(__clang__)
#define LLAVA_ATTRIBUTE(x) __attribute__((x))
#else
#define LLAVA_ATTRIBUTE(x)
#endif
#define LLAVA_GUARDED_BY(mutex) LLAVA_ATTRIBUTE(guarded_by(mutex))
#define LLAVA_REQUIRES(...) LLAVA_ATTRIBUTE(requires_capability(__VA_ARGS__))

namespace llava {

class LLAVA_ATTRIBUTE(capability("mutex")) Mutex {
 public:
  void lock() LLAVA_ATTRIBUTE(acquire_capability()) { mutex_.lock(); }
  void unlock() LLAVA_ATTRIBUTE(release_capability()) { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class LLAVA_ATTRIBUTE(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) LLAVA_ATTRIBUTE(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.lock();
  }
  ~MutexLock() LLAVA_ATTRIBUTE(release_capability()) { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Sleeps until notified or `deadline`; the caller holds the mutex and loops over its condition.
class CondVar {
 public:
  using Clock = std::chrono::steady_clock;
  // False: the deadline has passed.
  bool WaitUntil(Mutex& mutex, Clock::time_point deadline) LLAVA_REQUIRES(mutex) {
    return condition_.wait_until(mutex, deadline) == std::cv_status::no_timeout;
  }
  void Wait(Mutex& mutex) LLAVA_REQUIRES(mutex) { condition_.wait(mutex); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable_any condition_;
};

}  // namespace llava
