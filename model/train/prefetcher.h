#pragma once

// Prepares the items of a sequence ahead of their use, on threads of its own.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace llava {

// Items are a pure function of their number. Take is for one thread; `make` runs on the
// prefetcher's threads and must be thread-safe. `depth` items beyond the last one taken are
// prepared.
template <typename Item>
class Prefetcher {
 public:
  Prefetcher(std::function<Item(int64_t)> make, int threads, int depth)
      : make_(std::move(make)), depth_(depth) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~Prefetcher() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Item `index`, which is best the one after the last; any other one starts anew from there.
  // Throws what `make` threw for it.
  Item Take(int64_t index, double* waited_seconds = nullptr) {
    const auto begin = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    if (index != wanted_) {
      ready_.clear();
      next_ = index;
      ++generation_;
    }
    wanted_ = index;
    changed_.notify_all();
    changed_.wait(lock, [&] { return ready_.contains(index); });
    Made made = std::move(ready_.at(index));
    ready_.erase(index);
    wanted_ = index + 1;
    lock.unlock();
    changed_.notify_all();
    if (made.error) std::rethrow_exception(made.error);
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - begin;
    if (waited_seconds != nullptr) *waited_seconds = waited.count();
    return std::move(*made.item);
  }

 private:
  struct Made {
    std::unique_ptr<Item> item;
    std::exception_ptr error;
  };

  void Work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || (wanted_ >= 0 && next_ < wanted_ + depth_); });
      if (stopping_) return;
      const int64_t index = next_++, generation = generation_;
      lock.unlock();
      Made made;
      try {
        made.item = std::make_unique<Item>(make_(index));
      } catch (...) {
        made.error = std::current_exception();
      }
      lock.lock();
      if (generation == generation_) ready_.emplace(index, std::move(made));
      changed_.notify_all();
    }
  }

  const std::function<Item(int64_t)> make_;
  const int64_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, Made> ready_;
  int64_t wanted_ = -1, next_ = 0, generation_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace llava
