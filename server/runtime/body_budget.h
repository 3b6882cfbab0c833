#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace llava {

// Memory that many share, such as the bodies of requests on their way. Thread-safe.
class BodyBudget {
 public:
  explicit BodyBudget(uint64_t limit) : limit_(limit) {}

  uint64_t used() const { return used_; }

  // What one of them holds; gives it back at its end. One thread.
  class Share {
   public:
    explicit Share(std::shared_ptr<BodyBudget> budget) : budget_(std::move(budget)) {}
    ~Share() { Release(); }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // Holds `bytes` from now on, if that is more than before. False: there is no room for them.
    bool Grow(uint64_t bytes) {
      if (bytes <= bytes_) return true;
      if (!budget_->Take(bytes - bytes_)) return false;
      bytes_ = bytes;
      return true;
    }
    void Release() { budget_->used_ -= std::exchange(bytes_, 0); }

   private:
    const std::shared_ptr<BodyBudget> budget_;
    uint64_t bytes_ = 0;
  };

 private:
  bool Take(uint64_t bytes) {
    uint64_t used = used_;
    do {
      if (bytes > limit_ || used > limit_ - bytes) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes));
    return true;
  }

  const uint64_t limit_;
  std::atomic<uint64_t> used_ = 0;
};

}  // namespace llava
