#pragma once

// Requests and tokens per minute: two buckets that fill steadily. Pure: the time comes from
// outside.

#include <chrono>
#include <cstdint>

namespace llava {

// One thread; times must not go back.
class RateLimit {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // 0: no limit. Up to six seconds' worth may go at once, and always one request.
  RateLimit(double requests_per_minute, double tokens_per_minute, Time now);

  // When a request of so many tokens may go: `now` or later.
  Time Earliest(Time now, uint64_t tokens) const;
  // One goes.
  void Take(Time now, uint64_t tokens);
  // What it took turned out to be `used` tokens instead of `taken`.
  void Correct(uint64_t taken, uint64_t used);

 private:
  struct Bucket {
    double per_second = 0;  // 0: no limit
    double capacity = 0, level = 0;

    explicit Bucket(double per_minute);
    double SecondsUntil(double amount) const;
  };
  void FillUntil(Time now);

  Bucket requests_, tokens_;
  Time filled_;
};

}  // namespace llava
