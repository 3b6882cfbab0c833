#include "model/openai/rate_limit.h"

#include <algorithm>

namespace llava {
namespace {

constexpr double kBurstSeconds = 6;

}  // namespace

RateLimit::Bucket::Bucket(double per_minute)
    : per_second(per_minute / 60),
      capacity(std::max(1.0, per_second * kBurstSeconds)),
      level(capacity) {}

// More than the bucket holds may go once it is full; its level is below zero then for a while.
double RateLimit::Bucket::SecondsUntil(double amount) const {
  if (per_second <= 0) return 0;
  return std::max(0.0, std::min(amount, capacity) - level) / per_second;
}

RateLimit::RateLimit(double requests_per_minute, double tokens_per_minute, Time now)
    : requests_(requests_per_minute), tokens_(tokens_per_minute), filled_(now) {}

RateLimit::Time RateLimit::Earliest(Time now, uint64_t tokens) const {
  const double seconds =
      std::max(requests_.SecondsUntil(1), tokens_.SecondsUntil(static_cast<double>(tokens)));
  const auto wait = std::chrono::ceil<Time::duration>(std::chrono::duration<double>(seconds));
  return std::max(now, filled_ + wait);
}

void RateLimit::Take(Time now, uint64_t tokens) {
  FillUntil(now);
  requests_.level -= 1;
  tokens_.level -= static_cast<double>(tokens);
}

void RateLimit::Correct(uint64_t taken, uint64_t used) {
  tokens_.level = std::min(tokens_.capacity,
                           tokens_.level + static_cast<double>(taken) - static_cast<double>(used));
}

void RateLimit::FillUntil(Time now) {
  const double seconds = std::chrono::duration<double>(now - filled_).count();
  for (Bucket* bucket : {&requests_, &tokens_}) {
    bucket->level = std::min(bucket->capacity, bucket->level + bucket->per_second * seconds);
  }
  filled_ = now;
}

}  // namespace llava
