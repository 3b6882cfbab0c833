#pragma once

#include <cstddef>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "server/runtime/bounded_queue.h"

namespace llava {

// A few threads for short work that must not hold up a gRPC thread. Thread-safe. Tasks must not
// throw.
class TaskThreads {
 public:
  TaskThreads(int threads, size_t capacity) : queue_(capacity) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] {
        while (!queue_.drained()) {
          for (auto& task : queue_.PopBatch(1, std::chrono::seconds(1), std::chrono::seconds(0))) {
            task();
          }
        }
      });
    }
  }
  // Runs what was posted, then joins.
  ~TaskThreads() {
    queue_.Close();
    for (std::thread& thread : threads_) thread.join();
  }

  // False: the queue is full, the task will not run.
  bool Post(std::function<void()> task) { return queue_.TryPush(task); }

 private:
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace llava
