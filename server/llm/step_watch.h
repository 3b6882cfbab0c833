#pragma once

// Whether the thread of a worker hangs in a call to its device, or in the loading of its model.

#include <atomic>
#include <chrono>
#include <functional>
#include <stdexcept>

#include "server/runtime/mutex.h"

namespace llava {

// A call came back to a thread that was given up meanwhile: it must end and touch nothing that is
// not its own.
struct WorkerGivenUp : std::runtime_error {
  WorkerGivenUp() : std::runtime_error("the worker was given up") {}
};

// One thread makes calls, another one looks. Thread-safe.
class StepWatch {
 public:
  using Clock = std::chrono::steady_clock;

  // How long a call may take; the default is for ever.
  struct Limits {
    Clock::duration step = Clock::duration::max();
    Clock::duration load = Clock::duration::max();  // without anything that shows that it goes on
  };

  // Makes a call. Throws what it throws, or WorkerGivenUp if the thread was given up.
  void Run(const std::function<void()>& call);
  // As Run, for what may take long: it goes on as long as `progress`, which any thread may ask, is
  // seen to change.
  void Load(const std::function<double()>& progress, const std::function<void()>& call);

  // Gives the thread up if its call takes too long: then `on_give_up` runs, before the thread can
  // go on, and true is returned, once. `loads`: the call is one of Load. By one thread at a time.
  bool GiveUpIfLonger(const Limits& limits, const std::function<void(bool loads)>& on_give_up);

  // A call is being made. Takes no lock: who is told by on_give_up may hold its own.
  bool calling() const { return calling_; }

  // The thread comes to its end, with what it had freed.
  void SetOver() { over_ = true; }
  bool over() const { return over_; }

 private:
  void Call(const std::function<double()>* progress, const std::function<void()>& call);
  // Throws WorkerGivenUp.
  void Leave();

  Mutex mutex_;
  std::atomic<bool> calling_ = false;  // changes under the lock
  std::atomic<bool> over_ = false;
  bool given_up_ LLAVA_GUARDED_BY(mutex_) = false;
  Clock::time_point since_ LLAVA_GUARDED_BY(mutex_);
  const std::function<double()>* progress_ LLAVA_GUARDED_BY(mutex_) = nullptr;  // of Load
  double seen_ LLAVA_GUARDED_BY(mutex_) = 0;                                    // of it, last
};

}  // namespace llava
