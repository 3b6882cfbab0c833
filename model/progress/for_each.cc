#include "model/progress/for_each.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace llava {

void ForEach(int64_t count, int threads,
             const std::function<std::function<void(int64_t)>()>& make_worker) {
  std::atomic<int64_t> next = 0;
  std::mutex mutex;
  std::exception_ptr fault;
  const auto end = [&] {  // all threads, for what has been caught
    next = count;
    const std::lock_guard lock(mutex);
    if (!fault) fault = std::current_exception();
  };
  const auto work = [&] {
    try {
      const auto worker = make_worker();
      for (int64_t i = next++; i < count; i = next++) worker(i);
    } catch (...) {
      end();
    }
  };
  const int64_t wanted = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
  {
    std::vector<std::jthread> workers;
    try {
      while (std::ssize(workers) < std::min(wanted, count)) workers.emplace_back(work);
    } catch (...) {  // no more threads
      end();
    }
  }
  if (fault) std::rethrow_exception(fault);
}

}  // namespace llava
