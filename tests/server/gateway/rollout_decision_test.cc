#include "server/gateway/rollout_decision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace llava {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

// Turns of which each took as long as the others.
VersionEvidence Turns(uint64_t turns, uint64_t failed = 0, double first_token = 0.2,
                      double between_tokens = 0.02) {
  VersionEvidence evidence;
  evidence.turns = evidence.turns_in_all = turns;
  evidence.failed = failed;
  evidence.first_token.assign(turns - failed, first_token);
  evidence.between_tokens.assign(turns - failed, between_tokens);
  evidence.drift = 0.01;
  return evidence;
}

struct Case {
  std::string name;
  std::function<void(VersionEvidence& canary, VersionEvidence& stable)> change;
  RolloutVerdict verdict;
  std::string reason;
  seconds watched{300};
};

class DecideRolloutTest : public testing::TestWithParam<Case> {};

TEST_P(DecideRolloutTest, Decides) {
  VersionEvidence canary = Turns(100), stable = Turns(900);
  GetParam().change(canary, stable);
  for (auto* times : {&canary.first_token, &canary.between_tokens, &stable.first_token}) {
    std::sort(times->begin(), times->end());
  }
  const auto decision = DecideRollout(canary, stable, GetParam().watched, {});
  EXPECT_EQ(decision.verdict, GetParam().verdict) << decision.reason;
  EXPECT_THAT(decision.reason, HasSubstr(GetParam().reason));
}

constexpr auto kUndecided = RolloutVerdict::kUndecided;
constexpr auto kAsGood = RolloutVerdict::kAsGood;
constexpr auto kWorse = RolloutVerdict::kWorse;

INSTANTIATE_TEST_SUITE_P(
    Table, DecideRolloutTest,
    testing::Values(
        Case{"Alike", [](auto&, auto&) {}, kAsGood,
             "0 of 100 turns failed (stable: 0 of 900; allowed are 2% more)"},
        Case{"FewTurns", [](auto& canary, auto&) { canary = Turns(49); }, kUndecided,
             "49 turns of 50"},
        Case{"NothingSeen", [](auto& canary, auto&) { canary = {}; }, kUndecided, "0 turns"},
        Case{"NobodyToCompareWith", [](auto&, auto& stable) { stable = Turns(9); }, kUndecided,
             "the stable version had 9 turns"},
        Case{"TooSoon", [](auto&, auto&) {}, kUndecided, "watched for 59 s of 60", seconds(59)},
        Case{"ALittleMoreFailures", [](auto& canary, auto&) { canary = Turns(100, 2); }, kAsGood,
             "2 of 100"},
        Case{"PerhapsMoreFailures", [](auto& canary, auto&) { canary = Turns(100, 4); }, kUndecided,
             "perhaps by chance: 4 of 100"},
        Case{"MoreFailures", [](auto& canary, auto&) { canary = Turns(100, 10); }, kWorse,
             "10 of 100 turns failed"},
        Case{"AllOfFew", [](auto& canary, auto&) { canary = Turns(10, 10); }, kWorse, "10 of 10",
             seconds(1)},
        Case{"AllOfVeryFew", [](auto& canary, auto&) { canary = Turns(9, 9); }, kUndecided,
             "9 turns"},
        Case{"BothFailAlike",
             [](auto& canary, auto& stable) {
               canary = Turns(100, 30);
               stable = Turns(900, 270);
             },
             kAsGood, "30 of 100"},
        Case{"AllFailAndNobodyToCompareWith",
             [](auto& canary, auto& stable) {
               canary = Turns(20, 10);
               stable = {};
             },
             kUndecided, "20 turns"},
        Case{"SlowToBegin", [](auto& canary, auto&) { canary = Turns(100, 0, 0.5); }, kWorse,
             "100 of 100 turns took more than 350 ms to the first text"},
        Case{"ABitSlower", [](auto& canary, auto&) { canary = Turns(100, 0, 0.3); }, kAsGood, ""},
        Case{"SlowBetweenTokens", [](auto& canary, auto&) { canary = Turns(100, 0, 0.2, 0.2); },
             kWorse, "between two pieces of text"},
        Case{"SomeSlow",
             [](auto& canary, auto&) { std::fill_n(canary.first_token.begin(), 12, 5.0); },
             kUndecided, "perhaps by chance: 12 of 100"},
        Case{"AFifthSlow",
             [](auto& canary, auto&) { std::fill_n(canary.first_token.begin(), 21, 5.0); }, kWorse,
             "21 of 100"},
        Case{"FasterThanStable", [](auto&, auto& stable) { stable = Turns(900, 0, 2.0, 0.2); },
             kAsGood, ""},
        Case{"HangsUntilPeopleGo",
             [](auto& canary, auto&) {
               canary = Turns(15);
               canary.first_token.clear();
               canary.between_tokens.clear();
               canary.given_up.assign(15, 20.0);
             },
             kWorse, "15 of 15 turns took more"},
        Case{"PeopleWhoGoAtOnceSayNothing",
             [](auto& canary, auto&) { canary.given_up.assign(50, 0.01); }, kAsGood, ""},
        Case{"Nan", [](auto& canary, auto&) { canary.nan_outputs = 1; }, kWorse, "no numbers",
             seconds(0)},
        Case{"NanOfBoth",
             [](auto& canary, auto& stable) {
               canary.nan_outputs = 1;
               stable.nan_outputs = 9;
             },
             kAsGood, ""},
        Case{"NanOfBothButOfMoreThanAWindow",
             [](auto& canary, auto& stable) {
               canary.nan_outputs = 1;
               stable.nan_outputs = 30;
               stable.turns_in_all = 1'000'000;
             },
             kWorse, "no numbers", seconds(0)},
        Case{"Drift", [](auto& canary, auto&) { canary.drift = 0.6; }, kWorse, "self-test by 0.6",
             seconds(0)},
        Case{"DriftThatIsNoNumber",
             [](auto& canary, auto&) { canary.drift = std::numeric_limits<double>::quiet_NaN(); },
             kWorse, "self-test by nan", seconds(0)},
        Case{"NoSelfTest", [](auto& canary, auto&) { canary.drift = -1; }, kAsGood, ""}),
    [](const auto& info) { return info.param.name; });

TEST(TailProbabilityTest, IsExact) {
  EXPECT_EQ(TailProbability(0, 10, 0.5), 1);
  EXPECT_NEAR(TailProbability(10, 10, 0.5), std::pow(0.5, 10), 1e-12);
  EXPECT_NEAR(TailProbability(1, 2, 0.1), 0.19, 1e-12);
  EXPECT_NEAR(TailProbability(2, 3, 0.2), 3 * 0.04 * 0.8 + 0.008, 1e-12);
  EXPECT_EQ(TailProbability(11, 10, 0.5), 0);
  EXPECT_EQ(TailProbability(1, 10, 0), 0);
  EXPECT_EQ(TailProbability(5, 10, 1), 1);
  EXPECT_NEAR(TailProbability(2000, 4000, 0.5), 0.5063, 1e-3);
}

// A rollout of a canary with such a share of failed and slow turns, looked at after each of its
// turns, until a verdict or 400 turns.
RolloutVerdict Simulate(std::mt19937& random, double failing, double slowness) {
  std::bernoulli_distribution canary_fails(failing), stable_fails(0.02);
  std::lognormal_distribution<double> times(-1.6, 0.5);
  VersionEvidence canary, stable;
  const auto add = [&](VersionEvidence& evidence, bool failed, double factor) {
    ++evidence.turns;
    evidence.failed += failed ? 1 : 0;
    for (auto* values : {&evidence.first_token, &evidence.between_tokens}) {
      const double value = factor * times(random);
      values->insert(std::upper_bound(values->begin(), values->end(), value), value);
    }
  };
  for (int turn = 0; turn < 400; ++turn) {
    add(canary, canary_fails(random), slowness);
    for (int i = 0; i < 4; ++i) add(stable, stable_fails(random), 1);
    // Never promoted: the longest chance of a mistake.
    const auto decision = DecideRollout(canary, stable, seconds(0), {});
    if (decision.verdict == RolloutVerdict::kWorse) return decision.verdict;
  }
  return RolloutVerdict::kUndecided;
}

TEST(DecideRolloutTest, LookingAgainAndAgainSeldomRollsBackAGoodCanary) {
  std::mt19937 random(7);
  int mistakes = 0;
  for (int i = 0; i < 400; ++i) {
    mistakes += Simulate(random, 0.02, 1) == RolloutVerdict::kWorse ? 1 : 0;
  }
  EXPECT_LE(mistakes, 4);
}

TEST(DecideRolloutTest, ABadCanaryIsFound) {
  std::mt19937 random(8);
  int found_failing = 0, found_slow = 0;
  for (int i = 0; i < 50; ++i) {
    found_failing += Simulate(random, 0.2, 1) == RolloutVerdict::kWorse ? 1 : 0;
    found_slow += Simulate(random, 0.02, 2.5) == RolloutVerdict::kWorse ? 1 : 0;
  }
  EXPECT_EQ(found_failing, 50);
  EXPECT_EQ(found_slow, 50);
}

TEST(TurnSamplesTest, CountsByVersionAndTime) {
  using Clock = TurnSamples::Clock;
  TurnSamples samples;
  v1::ModelVersion one, two;
  one.set_name("m");
  one.set_version(1);
  two = one;
  two.set_version(2);
  const auto begin = Clock::time_point{};
  samples.Add(one, {.first_token = 0.3, .between_tokens = 0.1, .largest_gap = 2}, begin);
  samples.Add(one, {.first_token = 0.1}, begin + seconds(10));
  samples.Add(one, {.failed = true}, begin + seconds(20));
  samples.Add(two, {.given_up = 7}, begin + seconds(20));
  const auto all = samples.Collect(one, begin);
  EXPECT_EQ(all.turns, 3u);
  EXPECT_EQ(all.failed, 1u);
  EXPECT_THAT(all.first_token, testing::ElementsAre(0.1, 0.3));
  EXPECT_EQ(all.largest_gap, 2);
  const auto late = samples.Collect(one, begin + seconds(10));
  EXPECT_EQ(late.turns, 2u);
  EXPECT_THAT(late.between_tokens, testing::IsEmpty());
  EXPECT_THAT(samples.Collect(two, begin).given_up, testing::ElementsAre(7));
  two.set_digest("other contents under the same number");
  EXPECT_EQ(samples.Collect(two, begin).turns, 0u);
}

TEST(QuantileTest, IsAValueOfTheList) {
  EXPECT_EQ(Quantile({}, 0.9), 0);
  EXPECT_EQ(Quantile({5}, 0.9), 5);
  EXPECT_EQ(Quantile({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.9), 9);
  EXPECT_EQ(Quantile({1, 2, 3, 4}, 0.5), 2);
  EXPECT_EQ(Quantile({1, 2, 3}, 0), 1);
}

}  // namespace
}  // namespace llava
