#pragma once

// The order in which turns of an earlier process are taken up.

#include <cstddef>
#include <deque>
#include <functional>

#include "server/runtime/mutex.h"

namespace llava {

// Turns try to go on here, each from Enter to Leave: a few at a time, first come, first served. A
// turn in whose try a process has died before may have killed it. It tries when all others have
// left, and alone: if the process dies again, it was nobody else. Thread-safe; steps run outside of
// the lock, within Enter, Open or another turn's Leave.
class RecoveryLane {
 public:
  explicit RecoveryLane(size_t at_once = 8) : at_once_(at_once) {}

  // Until then nobody tries: a process that cannot serve shall not be taken for one that died of
  // it.
  void Open();
  // `turn`: any unique address. `step` runs when its time has come, unless Remove comes before.
  void Enter(const void* turn, bool suspect, std::function<void()> step);
  // False: its step runs, or ran, or was never to run.
  bool Remove(const void* turn);
  // Of a turn whose step has run.
  void Leave();

 private:
  struct Waiting {
    const void* turn;
    std::function<void()> step;
  };

  void Dispatch();

  const size_t at_once_;
  Mutex mutex_;
  std::deque<Waiting> waiting_ LLAVA_GUARDED_BY(mutex_), suspects_ LLAVA_GUARDED_BY(mutex_);
  size_t inside_ LLAVA_GUARDED_BY(mutex_) = 0;
  bool open_ LLAVA_GUARDED_BY(mutex_) = false;
  bool suspect_inside_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
