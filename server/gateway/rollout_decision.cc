#include "server/gateway/rollout_decision.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace llava {
namespace {

constexpr double kNoChance = 0.001;
constexpr double kSlowShare = 0.1;

double ShareOf(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

uint64_t CountAbove(const std::vector<double>& ascending, double limit) {
  return static_cast<uint64_t>(ascending.end() -
                               std::upper_bound(ascending.begin(), ascending.end(), limit));
}

// One rule: worse, passed its limit perhaps by chance, or fine.
struct Finding {
  bool worse = false, passed = false;
  std::string words;
};

Finding JudgeFailures(const VersionEvidence& canary, const VersionEvidence& stable,
                      const RolloutLimits& limits) {
  const double share = ShareOf(canary.failed, canary.turns);
  const double usual = ShareOf(stable.failed, stable.turns);
  // As if one more of two more turns had failed.
  const double doubtful =
      static_cast<double>(stable.failed + 1) / static_cast<double>(stable.turns + 2);
  const double allowed = std::min(1.0, std::max(usual, doubtful) + limits.error_tolerance);
  Finding finding;
  finding.worse = canary.turns >= limits.few_turns && share > allowed &&
                  TailProbability(canary.failed, canary.turns, allowed) < kNoChance;
  finding.passed = share > usual + limits.error_tolerance;
  finding.words = absl::StrFormat(
      "%d of %d turns failed (stable: %d of %d; allowed are %.3g%% more)", canary.failed,
      canary.turns, stable.failed, stable.turns, 100 * limits.error_tolerance);
  return finding;
}

// `late` have no value but waited at least so long.
Finding JudgeTimes(std::string_view what, const std::vector<double>& canary,
                   const std::vector<double>& late, const std::vector<double>& stable,
                   const RolloutLimits& limits) {
  Finding finding;
  const double usual = Quantile(stable, 1 - kSlowShare);
  const double limit = limits.latency_ratio * usual + limits.latency_slack;
  const uint64_t given_up = CountAbove(late, limit);
  const uint64_t slow = CountAbove(canary, limit) + given_up;
  const uint64_t total = canary.size() + given_up;
  if (stable.size() < limits.few_turns || total < limits.few_turns) return finding;
  finding.passed = ShareOf(slow, total) > kSlowShare;
  finding.worse = finding.passed && TailProbability(slow, total, kSlowShare) < kNoChance;
  finding.words = absl::StrFormat(
      "%d of %d turns took more than %.0f ms %s (nine tenths: %.1f ms, stable: %.1f ms)", slow,
      total, 1000 * limit, std::string(what), 1000 * Quantile(canary, 1 - kSlowShare),
      1000 * usual);
  return finding;
}

}  // namespace

double TailProbability(uint64_t bad, uint64_t total, double share) {
  if (bad == 0) return 1;
  if (bad > total || share <= 0) return 0;
  if (share >= 1) return 1;
  const double n = static_cast<double>(total);
  const double log_share = std::log(share), log_rest = std::log1p(-share);
  double sum = 0;
  for (uint64_t count = bad; count <= total; ++count) {
    const double k = static_cast<double>(count);
    const double term = std::exp(std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1) +
                                 k * log_share + (n - k) * log_rest);
    sum += term;
    if (k > n * share && term < 1e-12 * sum) break;
  }
  return std::min(1.0, sum);
}

RolloutDecision DecideRollout(const VersionEvidence& canary, const VersionEvidence& stable,
                              std::chrono::milliseconds watched, const RolloutLimits& limits) {
  if (std::isnan(canary.drift) || canary.drift > limits.max_drift) {
    return {RolloutVerdict::kWorse,
            absl::StrFormat("it is off its self-test by %.4g, allowed are %.4g", canary.drift,
                            limits.max_drift)};
  }
  // One is too many, unless the stable version has them as often.
  const auto turns_of = [](const VersionEvidence& each) {
    return static_cast<double>(std::max<uint64_t>(each.turns_in_all, 1));
  };
  if (canary.nan_outputs > 0 && static_cast<double>(canary.nan_outputs) * turns_of(stable) >
                                    static_cast<double>(stable.nan_outputs) * turns_of(canary)) {
    return {RolloutVerdict::kWorse,
            absl::StrFormat("%d of its answers failed for values that are no numbers (stable: %d)",
                            canary.nan_outputs, stable.nan_outputs)};
  }
  const Finding findings[] = {JudgeFailures(canary, stable, limits),
                              JudgeTimes("to the first text", canary.first_token, canary.given_up,
                                         stable.first_token, limits),
                              JudgeTimes("between two pieces of text", canary.between_tokens, {},
                                         stable.between_tokens, limits)};
  for (const Finding& each : findings) {
    if (each.worse) return {RolloutVerdict::kWorse, each.words};
  }
  if (canary.turns < limits.min_turns) {
    return {RolloutVerdict::kUndecided,
            absl::StrCat(canary.turns, " turns of ", limits.min_turns, " were seen")};
  }
  if (stable.turns < limits.few_turns) {
    return {RolloutVerdict::kUndecided,
            absl::StrCat("the stable version had ", stable.turns, " turns of ", limits.few_turns,
                         " to compare with")};
  }
  if (watched < limits.min_time) {
    return {RolloutVerdict::kUndecided, absl::StrCat("watched for ", watched.count() / 1000,
                                                     " s of ", limits.min_time.count() / 1000)};
  }
  std::string all;
  for (const Finding& each : findings) {
    if (each.passed) {
      return {RolloutVerdict::kUndecided,
              absl::StrCat("not as good, perhaps by chance: ", each.words)};
    }
    if (!each.words.empty()) absl::StrAppend(&all, all.empty() ? "" : "; ", each.words);
  }
  return {RolloutVerdict::kAsGood, all};
}

}  // namespace llava
