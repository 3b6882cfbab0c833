#pragma once

// What to do about an attempt that failed, and when to try again: pure decisions.

#include <chrono>
#include <optional>
#include <random>
#include <string>
#include <string_view>

namespace llava {

enum class Verdict {
  kAnswer,  // 200: read it
  kRetry,   // may be better later: 408, 409, 425, 429, 500 and above
  kFail,    // this request will never do: 400, 413, 422, other 4xx, 403 where its input is flagged
  kFatal,   // nor will any other: 3xx, 401, 402, 403, 404, and 429 where the credit has run out
};

// `body` of the answer with this HTTP status.
Verdict JudgeStatus(int status, std::string_view body);

// "Retry-After": seconds or an HTTP date, which is compared with `now`. Nothing for anything else.
std::optional<std::chrono::milliseconds> ParseRetryAfter(const std::string& value,
                                                         std::chrono::system_clock::time_point now);
// OpenAI's "Retry-After-Ms".
std::optional<std::chrono::milliseconds> ParseRetryAfterMs(const std::string& value);

// Exponential back-off with jitter. One thread.
class Backoff {
 public:
  struct Options {
    std::chrono::milliseconds first{1000}, most{60'000};
  };
  explicit Backoff(const Options& options) : options_(options) {}

  // How long to wait after attempt `number`, counted from 1, failed: first * 2^(number - 1) but at
  // most `most`, times a random number in [1/2, 1].
  std::chrono::milliseconds After(int number);

 private:
  Options options_;
  std::mt19937_64 random_{std::random_device()()};  // clients shall not come in step
};

}  // namespace llava
