#pragma once

#include <functional>
#include <list>
#include <thread>

#include "server/runtime/mutex.h"

namespace llava {

// Takes things away on threads of their own: what the last request of a version holds must not end
// on that version's own threads, and what hangs must not hold up the next. Thread-safe.
class DisposalThreads {
 public:
  // Waits for all that was posted.
  ~DisposalThreads();

  void Post(std::function<void()> disposal);
  // Until all that was posted is done. False: not by `deadline`.
  bool WaitUntilIdle(CondVar::Clock::time_point deadline);

 private:
  struct Disposal {
    std::thread thread;
    bool done = false;
  };
  bool Idle() const LLAVA_REQUIRES(mutex_);

  Mutex mutex_;
  CondVar changed_;
  std::list<Disposal> disposals_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
