#pragma once

// Threads that share out the many short pieces of work of a forward pass.

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace llava::ops::cpu {

// Waits spin for some microseconds and then sleep. Nobody waits for a thread that holds no task:
// when another process takes a core away, the others go on with all tasks but the one that was
// being done there.
//
// Thread-safe: callers of Run take turns.
class ThreadPool {
 public:
  // `threads` counts the caller of Run; at least 1. Throws std::system_error if one cannot start.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, worker) for all indices of [0, tasks), each once, and returns when all are
  // done. `worker` is in [0, threads()): no two calls with the same one run at the same time. After
  // an exception the tasks not yet begun are left out, and the exception is thrown here (one of
  // them, if there were several). Throws std::logic_error when called by a task of any pool.
  template <typename Task>
  void Run(int64_t tasks, const Task& task) {
    static_assert(std::is_invocable_v<const Task&, int64_t, int>);
    RunErased(tasks, &task, [](const void* erased, int64_t index, int worker) {
      (*static_cast<const Task*>(erased))(index, worker);
    });
  }

 private:
  using Call = void (*)(const void* task, int64_t index, int worker);

  void RunErased(int64_t tasks, const void* task, Call call);
  void Work(int worker);  // until no task is left to claim
  void Claimed(int64_t index, int worker);
  void Live(int worker);

  std::mutex callers_;

  // The job at hand. Written by the caller while no task is claimed or can be; read by who has
  // claimed a task of it.
  const void* task_ = nullptr;
  Call call_ = nullptr;
  int64_t tasks_ = 0;
  std::mutex failing_;
  std::exception_ptr failure_;  // guarded by failing_ while tasks run
  std::atomic<bool> failed_{false};

  // Of the job at hand: its number in the upper half, tasks not yet claimed in the lower.
  alignas(64) std::atomic<uint64_t> open_{0};
  alignas(64) std::atomic<uint32_t> done_{0};  // tasks that are done
  alignas(64) std::atomic<uint32_t> job_{0};   // changes with every job; workers sleep on it
  std::atomic<bool> stopping_{false};

  std::vector<std::thread> workers_;
};

}  // namespace llava::ops::cpu
