#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace llava {

// A rate with a memory of one minute: full at first, it fills at `per_minute` and holds that much.
// May go into debt when a reservation turns out too small. One thread (or the caller's lock).
class TokenBucket {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // 0 = no limit.
  TokenBucket(int64_t per_minute, TimePoint now)
      : capacity_(static_cast<double>(per_minute)), level_(capacity_), filled_(now) {}

  // Another rate from now on. What is there stays, as far as the bucket holds it: a change of
  // limits gives nothing to who has used up what he had. A bucket that had no limit is full.
  void SetRate(int64_t per_minute, TimePoint now) {
    const auto capacity = static_cast<double>(per_minute);
    if (capacity == capacity_) return;
    Fill(now);
    level_ = capacity_ > 0 ? std::min(level_, capacity) : capacity;
    capacity_ = capacity;
  }
  // How long until `amount` can be taken; 0 = now. More than the bucket holds can be taken when it
  // is full.
  std::chrono::milliseconds Wait(double amount, TimePoint now) {
    if (capacity_ <= 0) return std::chrono::milliseconds(0);
    Fill(now);
    const double missing = std::min(amount, capacity_) - level_;
    if (missing <= 0) return std::chrono::milliseconds(0);
    return std::chrono::milliseconds(1 + static_cast<int64_t>(missing / capacity_ * 60'000));
  }
  // Negative: gives back.
  void Take(double amount) {
    if (capacity_ > 0) level_ = std::min(capacity_, level_ - amount);
  }
  double level() const { return level_; }

 private:
  void Fill(TimePoint now) {
    const std::chrono::duration<double> passed = now - filled_;
    level_ = std::min(capacity_, level_ + passed.count() * capacity_ / 60);
    filled_ = now;
  }

  double capacity_;
  double level_;
  TimePoint filled_;
};

}  // namespace llava
