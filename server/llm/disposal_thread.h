#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "server/runtime/mutex.h"

namespace llava {

// Takes things away on a thread of its own: what the last request of a version holds must not end
// on that version's own threads. Thread-safe.
class DisposalThread {
 public:
  DisposalThread();
  // Does what is left.
  ~DisposalThread();

  void Post(std::function<void()> disposal);
  // Until all that was posted is done. False: not by `deadline`.
  bool WaitUntilIdle(CondVar::Clock::time_point deadline);

 private:
  void Work();

  Mutex mutex_;
  CondVar changed_;
  std::vector<std::function<void()>> waiting_ LLAVA_GUARDED_BY(mutex_);
  bool working_ LLAVA_GUARDED_BY(mutex_) = false;
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last
};

}  // namespace llava
