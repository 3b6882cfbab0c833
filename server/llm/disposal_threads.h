#pragma once

#include <functional>
#include <list>
#include <thread>
#include <utility>

#include "server/llm/thread_start.h"
#include "server/runtime/mutex.h"

namespace llava {

// Takes things away on threads of their own: what the last request of a version holds must not end
// on that version's own threads, and what hangs must not hold up the next. What no thread is to be
// had for waits until one of the calls below finds one. Thread-safe.
class DisposalThreads {
 public:
  explicit DisposalThreads(ThreadStart start = StartStdThread) : start_(std::move(start)) {}
  // Waits for all that was posted; does itself what waits for a thread.
  ~DisposalThreads();

  void Post(std::function<void()> disposal);
  // Until all that was posted is done. False: not by `deadline`.
  bool WaitUntilIdle(CondVar::Clock::time_point deadline);

 private:
  struct Disposal {
    std::function<void()> run;  // until it has its thread
    std::thread thread = {};
    bool done = false;
  };
  // Joins threads that are done and starts those that are missing.
  void Start() LLAVA_REQUIRES(mutex_);
  bool Idle() const LLAVA_REQUIRES(mutex_);

  const ThreadStart start_;

  Mutex mutex_;
  CondVar changed_;
  std::list<Disposal> disposals_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
