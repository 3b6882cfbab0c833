#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

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

  // The oldest one; waits until there is one. Nothing: closed and empty, the consumer may leave.
  std::optional<T> Pop() {
    MutexLock lock(mutex_);
    while (items_.empty() && !closed_) changed_.Wait(mutex_);
    if (items_.empty()) return std::nullopt;
    std::optional<T> item = std::move(items_.front());
    items_.pop_front();
    return item;
  }

  void Close() {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

 private:
  const size_t capacity_;

  Mutex mutex_;
  CondVar changed_;
  std::deque<T> items_ LLAVA_GUARDED_BY(mutex_);
  bool closed_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
