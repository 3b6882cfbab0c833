#pragma once

#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

#include "server/runtime/mutex.h"

namespace llava {

// First-in first-out hand-over of jobs between threads, with a hard size limit.
//
// Thread-safe. After Close() nothing enters; what is inside can still be taken.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Moves `item` in and returns true, or leaves `item` untouched and returns false when the queue
  // is full or closed. Never blocks.
  bool TryPush(T& item) {
    MutexLock lock(mutex_);
    if (closed_ || items_.size() >= capacity_) return false;
    items_.push_back(std::move(item));
    changed_.NotifyAll();
    return true;
  }

  // Takes 1..max_items items. Waits up to `first_wait` for the first one, then up to `fill_wait`
  // for the batch to fill. Empty result: the time ran out, or closed and drained.
  std::vector<T> PopBatch(size_t max_items, CondVar::Clock::duration first_wait,
                          CondVar::Clock::duration fill_wait) {
    MutexLock lock(mutex_);
    WaitForSize(1, first_wait);
    if (!items_.empty()) WaitForSize(max_items, fill_wait);
    std::vector<T> batch;
    while (!items_.empty() && batch.size() < max_items) {
      batch.push_back(std::move(items_.front()));
      items_.pop_front();
    }
    return batch;
  }

  void Close() {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

  // True once closed and empty: the consumer may leave.
  bool drained() const {
    MutexLock lock(mutex_);
    return closed_ && items_.empty();
  }

  size_t size() const {
    MutexLock lock(mutex_);
    return items_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  void WaitForSize(size_t size, CondVar::Clock::duration wait) LLAVA_REQUIRES(mutex_) {
    const auto deadline = CondVar::Clock::now() + wait;
    while (!closed_ && items_.size() < size && changed_.WaitUntil(mutex_, deadline)) {
    }
  }

  const size_t capacity_;

  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<T> items_ LLAVA_GUARDED_BY(mutex_);
  bool closed_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
