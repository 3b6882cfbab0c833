#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "server/runtime/fair_queue.h"
#include "server/runtime/mutex.h"

namespace llava {

// Hand-over between the stages of the vision service: fair order, and batches of items that may be
// computed together. How many items wait in all stages together is bounded at the engine's door.
//
// Thread-safe. After Close nothing enters; what is inside can still be taken.
template <typename T>
class WorkQueue {
 public:
  // Moves `item` in and returns true, or leaves it untouched and returns false once closed.
  bool Push(const QueuePlace& place, T& item) {
    MutexLock lock(mutex_);
    if (closed_) return false;
    queue_.Push(place, std::move(item));
    changed_.NotifyAll();
    return true;
  }

  // Waits for a first item, then up to `fill_wait` for more; takes the one whose turn it is and up
  // to max_items - 1 others for which `group` gives the same value. Empty: closed and drained.
  template <typename Group>
  std::vector<T> PopBatch(size_t max_items, CondVar::Clock::duration fill_wait,
                          const Group& group) {
    std::vector<T> batch;
    MutexLock lock(mutex_);
    while (batch.empty()) {
      while (queue_.empty() && !closed_) changed_.Wait(mutex_);
      if (queue_.empty()) return batch;
      const auto deadline = CondVar::Clock::now() + fill_wait;
      while (!closed_ && queue_.size() < max_items && changed_.WaitUntil(mutex_, deadline)) {
      }
      TakeBatch(max_items, group, batch);  // nothing if another consumer was faster
    }
    return batch;
  }

  void Close() {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

 private:
  template <typename Group>
  void TakeBatch(size_t max_items, const Group& group, std::vector<T>& batch)
      LLAVA_REQUIRES(mutex_) {
    auto next = queue_.PopFront();
    while (next) {
      batch.push_back(*std::move(next));
      if (batch.size() == max_items) return;
      next = queue_.PopFirst([&](const T& item) { return group(item) == group(batch.front()); });
    }
  }

  Mutex mutex_;
  CondVar changed_;
  FairQueue<T> queue_ LLAVA_GUARDED_BY(mutex_);
  bool closed_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
