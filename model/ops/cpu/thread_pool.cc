#include "model/ops/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace llava::ops::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kShortestSpin = std::chrono::microseconds(2);
constexpr auto kLongestSpin = std::chrono::microseconds(50);
constexpr int kPausesAtOnce = 32;  // between two looks at the clock

thread_local bool in_task = false;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spinning pays while what is waited for comes soon: a spin in vain halves the next one, a
// successful one doubles it.
class Waiter {
 public:
  // Returns when `word` is no longer `value`.
  void Wait(const std::atomic<uint32_t>& word, uint32_t value) {
    const auto end = Clock::now() + spin_;
    do {
      for (int i = 0; i < kPausesAtOnce; ++i) {
        if (word.load(std::memory_order_acquire) != value) {
          spin_ = std::min<Clock::duration>(spin_ * 2, kLongestSpin);
          return;
        }
        Pause();
      }
    } while (Clock::now() < end);
    spin_ = std::max<Clock::duration>(spin_ / 2, kShortestSpin);
    word.wait(value, std::memory_order_acquire);
  }

 private:
  Clock::duration spin_ = kLongestSpin;
};

thread_local Waiter waiter;

constexpr uint64_t kLower = 0xFFFFFFFF;

void StopAll(std::atomic<bool>& stopping, std::atomic<uint32_t>& job,
             std::vector<std::thread>& workers) {
  stopping.store(true, std::memory_order_relaxed);
  job.fetch_add(1, std::memory_order_release);
  job.notify_all();
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1) {
    throw std::invalid_argument("a pool of " + std::to_string(threads) + " threads; at least 1");
  }
  workers_.reserve(threads - 1);
  for (int worker = 1; worker < threads; ++worker) {
    try {
      workers_.emplace_back([this, worker] { Live(worker); });
    } catch (const std::system_error& error) {
      StopAll(stopping_, job_, workers_);
      throw std::system_error(error.code(), "thread " + std::to_string(worker) + " of " +
                                                std::to_string(threads) + " cannot be started");
    }
  }
}

ThreadPool::~ThreadPool() { StopAll(stopping_, job_, workers_); }

void ThreadPool::RunErased(int64_t tasks, const void* task, Call call) {
  if (in_task) throw std::logic_error("ThreadPool::Run from within a task");
  if (tasks <= 0) return;
  if (tasks > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument(std::to_string(tasks) + " tasks at once");
  }
  const std::lock_guard one_at_a_time(callers_);
  task_ = task;
  call_ = call;
  tasks_ = tasks;
  failed_.store(false, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint64_t number = (open_.load(std::memory_order_relaxed) >> 32) + 1;
  open_.store(number << 32 | static_cast<uint64_t>(tasks), std::memory_order_release);
  if (tasks > 1 && !workers_.empty()) {
    job_.fetch_add(1, std::memory_order_release);
    job_.notify_all();
  }
  Work(0);
  for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != tasks;) {
    waiter.Wait(done_, done);
  }
  if (failed_.load(std::memory_order_relaxed)) std::rethrow_exception(std::exchange(failure_, {}));
}

void ThreadPool::Work(int worker) {
  uint64_t open = open_.load(std::memory_order_acquire);
  while ((open & kLower) != 0) {
    // Succeeds only on the job that `open` was read from; from then on that job cannot end before
    // this task is done.
    if (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      continue;
    }
    const int64_t tasks = tasks_;
    Claimed(tasks - static_cast<int64_t>(open & kLower), worker);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) done_.notify_one();
    open = open_.load(std::memory_order_acquire);
  }
}

void ThreadPool::Claimed(int64_t index, int worker) {
  if (failed_.load(std::memory_order_relaxed)) return;
  in_task = true;
  try {
    call_(task_, index, worker);
  } catch (...) {
    const std::lock_guard lock(failing_);
    if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
  }
  in_task = false;
}

void ThreadPool::Live(int worker) {
  uint32_t seen = 0;
  while (true) {
    waiter.Wait(job_, seen);
    seen = job_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    Work(worker);
  }
}

}  // namespace llava::ops::cpu
