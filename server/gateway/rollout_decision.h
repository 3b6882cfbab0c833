#pragma once

// Is a canary worse than the stable version, as good, or is it too early to tell? Pure.
//
// Each rule asks one question of a count: could so many bad turns among so many have come about by
// chance, if the canary were allowed the share of them that the stable version has, and a margin?
// The answer is the exact tail of a binomial distribution, which needs no assumption about times or
// about how many turns there are. Turns are the unit: pauses within one answer hang together.
//  - failed turns: the share of the stable version (taken a little high while few are known) plus
//    `error_tolerance`;
//  - slow turns: a tenth, "slow" being slower than `latency_ratio` times what nine tenths of the
//    stable version's turns keep, plus `latency_slack`; for the first token and between tokens.
// The guard looks again and again, so a tail counts as too small to be chance only below 1 in 1000:
// looks at a window that slides overlap so much that a whole rollout of a canary that is as good
// then ends by mistake less than once in a hundred (rollout_decision_test.cc).

#include <chrono>
#include <cstdint>
#include <string>

#include "server/gateway/rollout_evidence.h"

namespace llava {

struct RolloutLimits {
  uint64_t min_turns = 50;  // of the canary, before it is promoted
  uint64_t few_turns = 10;  // of either: below, neither failed nor slow turns are judged
  std::chrono::milliseconds min_time{60'000};  // of watching, before it is promoted
  double error_tolerance = 0.02;               // share of failed turns beyond the stable version's
  double latency_ratio = 1.5;
  double latency_slack = 0.05;  // seconds
  double max_drift = 0.5;       // from the self-test, in nats (a tower: of cosine)
};

enum class RolloutVerdict {
  kUndecided,
  kAsGood,  // enough turns, and none of the limits is passed
  kWorse,   // a limit is passed, and not by chance
};

struct RolloutDecision {
  RolloutVerdict verdict = RolloutVerdict::kUndecided;
  std::string reason;  // with the numbers
};

RolloutDecision DecideRollout(const VersionEvidence& canary, const VersionEvidence& stable,
                              std::chrono::milliseconds watched, const RolloutLimits& limits);

// Chance of at least `bad` among `total` when each is bad with probability `share`.
double TailProbability(uint64_t bad, uint64_t total, double share);

}  // namespace llava
