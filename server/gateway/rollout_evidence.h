#pragma once

// What the gateway has seen of each version lately.

#include <chrono>
#include <cstdint>
#include <deque>
#include <list>
#include <optional>
#include <vector>

#include "llava/v1/types.pb.h"
#include "server/gateway/model_choice.h"
#include "server/runtime/mutex.h"

namespace llava {

// One turn that ended. Times in seconds.
struct TurnSample {
  bool failed = false;  // by a fault of its version: an error of it, a dead worker
  std::optional<double> first_token = {};  // from receipt
  // Its client or a deadline ended it after so long, without any text.
  std::optional<double> given_up = {};
  // Average of the turn: pauses within one are not independent.
  std::optional<double> between_tokens = {};
  double largest_gap = 0;
};

// Turns of one version within a stretch of time.
struct VersionEvidence {
  uint64_t turns = 0, failed = 0;
  // One value a turn, ascending.
  std::vector<double> first_token, given_up, between_tokens;
  double largest_gap = 0;
  // From the services: largest deviation from the self-test (negative: none), and answers that
  // failed for values that are no numbers. These are too few for a window: they count since the
  // rollout began, as do the turns to compare them with.
  double drift = -1;
  uint64_t nan_outputs = 0;
  uint64_t turns_in_all = 0;
};

// The value below which `share` of the ascending `values` lie; 0 if there are none.
double Quantile(const std::vector<double>& values, double share);

// The last turns of the last versions, bounded in time and number. Thread-safe.
class TurnSamples {
 public:
  using Clock = std::chrono::steady_clock;

  void Add(const v1::ModelVersion& version, const TurnSample& sample,
           Clock::time_point now = Clock::now());
  // Turns that ended at `since` or later.
  VersionEvidence Collect(const v1::ModelVersion& version, Clock::time_point since) const;
  // Turns added so far, also those that are forgotten; 0 if the version is.
  uint64_t Count(const v1::ModelVersion& version) const;

 private:
  struct Entry {
    Clock::time_point ended;
    TurnSample sample;
  };
  struct Version {
    VersionId id;
    std::deque<Entry> entries;
    uint64_t added = 0;
  };

  mutable Mutex mutex_;
  std::list<Version> versions_ LLAVA_GUARDED_BY(mutex_);  // last used first
};

}  // namespace llava
