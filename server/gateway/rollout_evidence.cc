#include "server/gateway/rollout_evidence.h"

#include <algorithm>
#include <cmath>

namespace llava {
namespace {

// A version's turns beyond these say nothing more, and old versions nothing any more.
constexpr size_t kMaxTurns = 4096;
constexpr size_t kMaxVersions = 32;

}  // namespace

double Quantile(const std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const double place = std::ceil(share * static_cast<double>(values.size())) - 1;
  return values[static_cast<size_t>(
      std::clamp(place, 0.0, static_cast<double>(values.size() - 1)))];
}

void TurnSamples::Add(const v1::ModelVersion& version, const TurnSample& sample,
                      Clock::time_point now) {
  const VersionId id = IdOf(version);
  MutexLock lock(mutex_);
  const auto found = std::find_if(versions_.begin(), versions_.end(),
                                  [&id](const Version& each) { return each.id == id; });
  if (found == versions_.end()) {
    versions_.push_front({.id = id, .entries = {}});
    if (versions_.size() > kMaxVersions) versions_.pop_back();
  } else {
    versions_.splice(versions_.begin(), versions_, found);
  }
  ++versions_.front().added;
  std::deque<Entry>& entries = versions_.front().entries;
  entries.push_back({now, sample});
  if (entries.size() > kMaxTurns) entries.pop_front();
}

uint64_t TurnSamples::Count(const v1::ModelVersion& version) const {
  const VersionId id = IdOf(version);
  MutexLock lock(mutex_);
  for (const Version& each : versions_) {
    if (each.id == id) return each.added;
  }
  return 0;
}

VersionEvidence TurnSamples::Collect(const v1::ModelVersion& version,
                                     Clock::time_point since) const {
  VersionEvidence evidence;
  {
    const VersionId id = IdOf(version);
    MutexLock lock(mutex_);
    for (const Version& each : versions_) {
      if (each.id != id) continue;
      for (const Entry& entry : each.entries) {
        if (entry.ended < since) continue;
        const TurnSample& sample = entry.sample;
        ++evidence.turns;
        evidence.failed += sample.failed ? 1 : 0;
        if (sample.first_token) evidence.first_token.push_back(*sample.first_token);
        if (sample.given_up) evidence.given_up.push_back(*sample.given_up);
        if (sample.between_tokens) evidence.between_tokens.push_back(*sample.between_tokens);
        evidence.largest_gap = std::max(evidence.largest_gap, sample.largest_gap);
      }
    }
  }
  for (auto* values : {&evidence.first_token, &evidence.given_up, &evidence.between_tokens}) {
    std::sort(values->begin(), values->end());
  }
  return evidence;
}

}  // namespace llava
