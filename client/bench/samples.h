#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace llava::bench {

// What one answered question showed; all times in seconds from the moment it was sent.
struct TurnSample {
  uint32_t turn = 1;        // position in its session, from 1
  double acknowledged = 0;  // until `turn_started`: the question is durable
  double first_text = 0;    // until the first piece of text
  double last_text = 0;     // until the last one
  double total = 0;         // until the end of the stream
  std::vector<float> gaps;  // between pieces of text
  std::vector<float> ages;  // of pieces that carry the clock of their sender, else empty
  uint32_t pieces = 0;      // messages with text
  uint32_t generated_tokens = 0;
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;
};

// Questions that ended with one status code.
struct Failures {
  uint64_t count = 0;
  std::string first_message;
};

// All that a run has seen.
struct Samples {
  std::vector<TurnSample> turns;
  std::map<std::string, Failures> failures;  // by name of the status code
  uint64_t sessions = 0;                     // begun
  uint64_t dropped_sessions = 0;             // open loop: not begun, as the limit was reached
  // Of the measured time alone:
  double seconds = 0;
  uint64_t window_pieces = 0;
  uint64_t window_turns = 0;  // that ended well

  void Fail(const absl::Status& status);
  uint64_t failed() const;
};

// Mean and percentiles of a set of values; all 0 and `count` 0 for an empty one.
struct Distribution {
  uint64_t count = 0;
  double mean = 0, median = 0, p90 = 0, p99 = 0, max = 0;
};

// Percentiles are values that occurred: the smallest one that at least this share does not exceed.
Distribution Describe(std::vector<double> values);

}  // namespace llava::bench
