#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "server/runtime/fair_queue.h"
#include "server/runtime/mutex.h"

namespace llava {

// When a batch leaves, and with how many.
struct BatchRule {
  size_t max_items = 1;
  // How long an item waits for company, from its arrival.
  CondVar::Clock::duration max_wait{0};
  // Sizes that suit the device, ascending, at most max_items: the largest that can be filled leaves
  // at once. Empty: max_items alone.
  std::vector<size_t> preferred = {};

  // The batch that `ready` items make without waiting longer; 0: none yet.
  size_t FullBatch(size_t ready) const {
    if (ready >= max_items && preferred.empty()) return max_items;
    size_t size = 0;
    for (const size_t candidate : preferred) {
      if (candidate <= ready) size = candidate;
    }
    return size;
  }
};

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
    queue_.Push(place, Waiting{std::move(item), CondVar::Clock::now()});
    changed_.NotifyAll();
    return true;
  }

  // Takes the item whose turn it is and others for which `group` gives the same value, as many as
  // `rule` says, in order of turn. Empty: closed and drained, or `leave` (asked at each change and
  // Wake) is true.
  template <typename Group, typename Leave>
  std::vector<T> PopBatch(const BatchRule& rule, const Group& group, const Leave& leave) {
    MutexLock lock(mutex_);
    while (!leave()) {
      if (queue_.empty()) {
        if (closed_) break;
        changed_.Wait(mutex_);
        continue;
      }
      const Ready ready = CountReady(group);
      size_t size = rule.FullBatch(ready.count);
      if (size == 0 && !closed_ && CondVar::Clock::now() < ready.since + rule.max_wait) {
        changed_.WaitUntil(mutex_, ready.since + rule.max_wait);
        continue;
      }
      if (size == 0) size = std::min(ready.count, rule.max_items);
      return Take(size, group);
    }
    return {};
  }

  // Takes one item as soon as there is one. Nothing: closed and drained.
  std::optional<T> Pop() {
    const auto all_alike = [](const T&) { return 0; };
    std::vector<T> one = PopBatch(BatchRule{}, all_alike, [] { return false; });
    if (one.empty()) return std::nullopt;
    return std::move(one.front());
  }

  // Makes waiting consumers ask their `leave`.
  void Wake() {
    MutexLock lock(mutex_);
    changed_.NotifyAll();
  }

  void Close() {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

 private:
  struct Waiting {
    T item;
    CondVar::Clock::time_point arrived;
  };
  // Items that go together with the one whose turn it is, and since when the oldest waits.
  struct Ready {
    size_t count = 0;
    CondVar::Clock::time_point since = CondVar::Clock::time_point::max();
  };

  template <typename Group>
  Ready CountReady(const Group& group) const LLAVA_REQUIRES(mutex_) {
    Ready ready;
    const auto wanted = group(queue_.Front()->item);
    queue_.ForEach([&](const Waiting& waiting) {
      if (group(waiting.item) != wanted) return;
      ++ready.count;
      ready.since = std::min(ready.since, waiting.arrived);
    });
    return ready;
  }

  template <typename Group>
  std::vector<T> Take(size_t size, const Group& group) LLAVA_REQUIRES(mutex_) {
    std::vector<T> batch;
    const auto wanted = group(queue_.Front()->item);
    while (batch.size() < size) {
      auto next =
          queue_.PopFirst([&](const Waiting& waiting) { return group(waiting.item) == wanted; });
      if (!next) break;
      batch.push_back(std::move(next->item));
    }
    return batch;
  }

  Mutex mutex_;
  CondVar changed_;
  FairQueue<Waiting> queue_ LLAVA_GUARDED_BY(mutex_);
  bool closed_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
