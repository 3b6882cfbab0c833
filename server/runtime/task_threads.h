#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "server/runtime/bounded_queue.h"

namespace llava {

// A few threads for short work that must not hold up a gRPC thread. Thread-safe. Tasks must not
// throw.
class TaskThreads {
 public:
  // Throws std::system_error if a thread cannot be started.
  TaskThreads(int threads, size_t capacity) : queue_(capacity) {
    for (int i = 0; i < threads; ++i) {
      try {
        threads_.emplace_back([this] { Work(); });
      } catch (const std::system_error& error) {
        Join();
        throw std::system_error(error.code(), "thread " + std::to_string(i + 1) + " of " +
                                                  std::to_string(threads) + " cannot be started");
      }
    }
  }
  // Runs what was posted, then joins.
  ~TaskThreads() { Join(); }

  // False: the queue is full, the task will not run.
  bool Post(std::function<void()> task) { return queue_.TryPush(task); }

 private:
  void Work() {
    while (const auto task = queue_.Pop()) (*task)();
  }
  void Join() {
    queue_.Close();
    for (std::thread& thread : threads_) thread.join();
  }

  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace llava
