#include "model/llava/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::ElementsAre;
using testing::FloatNear;

constexpr float kInfinity = INFINITY;
const std::vector<int32_t> kNone;

std::vector<float> RandomLogits(size_t size, uint32_t seed, bool with_ties = false) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = with_ties ? std::round(normal(random)) : normal(random);
  return logits;
}

std::vector<double> Softmax(const std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> result;
  for (const double x : logits) result.push_back(std::exp(x - top));
  const double sum = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& x : result) x /= sum;
  return result;
}

// The processors of transformers, one after the other, each by a full sort.
std::vector<double> SlowFilter(const std::vector<float>& logits, const SamplingOptions& options,
                               const std::vector<int32_t>& prompt,
                               const std::vector<int32_t>& answer) {
  std::vector<double> x(logits.begin(), logits.end());
  std::vector<int32_t> seen = prompt;
  seen.insert(seen.end(), answer.begin(), answer.end());
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (const int32_t id : seen) {
    if (id >= 0)
      x[id] = x[id] < 0 ? x[id] * options.repetition_penalty : x[id] / options.repetition_penalty;
  }
  for (size_t id = 0; id < x.size(); ++id) {
    const auto count = std::count(answer.begin(), answer.end(), static_cast<int32_t>(id));
    x[id] -= count * options.frequency_penalty + (count > 0 ? options.presence_penalty : 0);
  }
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  for (double& logit : x) logit /= options.temperature;
  if (options.top_k > 0 && options.top_k < x.size()) {
    const double least = x[order[options.top_k - 1]];
    for (double& logit : x)
      if (logit < least) logit = -kInfinity;
  }
  if (options.top_p < 1) {
    const std::vector<double> p = Softmax(x);
    double before = 0;
    for (const size_t id : order) {
      const bool keep = before < static_cast<double>(options.top_p);
      before += p[id];
      if (!keep) x[id] = -kInfinity;
    }
  }
  if (options.min_p > 0) {
    const std::vector<double> p = Softmax(x);
    const double best = *std::max_element(p.begin(), p.end());
    for (size_t id = 0; id < x.size(); ++id)
      if (p[id] < options.min_p * best) x[id] = -kInfinity;
  }
  return Softmax(x);
}

TEST(FilteredProbabilitiesTest, EqualsTheSortedWayForManyOptions) {
  const std::vector<int32_t> prompt = {3, 3, 900, -200, 17}, answer = {17, 5, 5, 5, 60};
  int checked = 0;
  for (const uint32_t seed : {1u, 2u, 3u}) {
    const std::vector<float> logits = RandomLogits(1000 + seed, seed);
    for (const float temperature : {0.2f, 1.0f, 1.7f}) {
      for (const uint32_t top_k : {0u, 1u, 7u, 5000u}) {
        for (const float top_p : {1.0f, 0.93f, 0.4f, 1e-6f}) {
          for (const float min_p : {0.0f, 0.02f, 1.0f}) {
            const SamplingOptions options{.temperature = temperature,
                                          .top_p = top_p,
                                          .top_k = top_k,
                                          .min_p = min_p,
                                          .repetition_penalty = seed == 1 ? 1.0f : 1.3f,
                                          .presence_penalty = seed == 3 ? 0.4f : 0.0f,
                                          .frequency_penalty = seed == 3 ? -0.7f : 0.0f};
            const std::vector<double> expected = SlowFilter(logits, options, prompt, answer);
            const std::vector<float> got = FilteredProbabilities(logits, options, prompt, answer);
            ASSERT_EQ(got.size(), expected.size());
            for (size_t id = 0; id < got.size(); ++id) {
              ASSERT_NEAR(got[id], expected[id], 2e-6)
                  << "id " << id << " k " << top_k << " p " << top_p << " min_p " << min_p << " T "
                  << temperature << " seed " << seed;
              ASSERT_TRUE(got[id] == 0 || expected[id] > 0) << "id " << id << " was filtered out";
              ASSERT_TRUE(got[id] > 0 || expected[id] < 1e-30) << "id " << id << " is missing";
            }
            ++checked;
          }
        }
      }
    }
  }
  EXPECT_EQ(checked, 432);
}

TEST(FilteredProbabilitiesTest, TopKKeepsTheEqualsOfTheLast) {
  const std::vector<float> logits = {1, 3, 2, 2, 0};
  const std::vector<float> p =
      FilteredProbabilities(logits, {.temperature = 1, .top_k = 2}, kNone, kNone);
  EXPECT_GT(p[3], 0);
  EXPECT_EQ(p[2], p[3]);
  EXPECT_EQ(p[0], 0);
}

TEST(FilteredProbabilitiesTest, TopPTakesTheLowestIdsOfEquals) {
  const std::vector<float> logits(10, 0.5f);
  const std::vector<float> p =
      FilteredProbabilities(logits, {.temperature = 1, .top_p = 0.35f}, kNone, kNone);
  EXPECT_THAT(p, ElementsAre(0.25f, 0.25f, 0.25f, 0.25f, 0, 0, 0, 0, 0, 0));
}

TEST(FilteredProbabilitiesTest, ForbiddenTokensStayForbidden) {
  const std::vector<float> logits = {-kInfinity, 1, -kInfinity, 1};
  EXPECT_THAT(
      FilteredProbabilities(logits, {.temperature = 2, .top_p = 0.999f, .top_k = 3}, kNone, kNone),
      ElementsAre(0, FloatNear(0.5f, 1e-6f), 0, FloatNear(0.5f, 1e-6f)));
}

TEST(FilteredProbabilitiesTest, TinyTemperatureIsGreedyAndDoesNotOverflow) {
  const std::vector<float> logits = {30, 31, -5};
  EXPECT_THAT(FilteredProbabilities(logits, {.temperature = 1e-38f}, kNone, kNone),
              ElementsAre(0, 1, 0));
}

TEST(FilteredProbabilitiesTest, GreedyPutsAllOnTheBestAfterPenalties) {
  const std::vector<float> logits = {1, 2.0f, 1.9f};
  EXPECT_THAT(FilteredProbabilities(logits, {}, kNone, kNone), ElementsAre(0, 1, 0));
  const std::vector<int32_t> said = {1};
  EXPECT_THAT(FilteredProbabilities(logits, {.presence_penalty = 0.5f}, kNone, said),
              ElementsAre(0, 0, 1));
  EXPECT_THAT(FilteredProbabilities(logits, {.presence_penalty = 0.5f}, said, kNone),
              ElementsAre(0, 1, 0))
      << "presence counts the answer, not the prompt";
  EXPECT_THAT(FilteredProbabilities(logits, {.repetition_penalty = 1.5f}, said, kNone),
              ElementsAre(0, 0, 1));
}

TEST(SampleTest, DrawsWithTheProbabilitiesOfTheFilters) {
  const std::vector<float> logits = RandomLogits(50, 9);
  SamplingOptions options{.temperature = 1.2f, .top_p = 0.95f, .top_k = 12};
  const std::vector<float> expected = FilteredProbabilities(logits, options, kNone, kNone);
  std::vector<int> count(50);
  constexpr int kDraws = 40000;
  for (int i = 0; i < kDraws; ++i) {
    options.seed = i;
    ++count[Sample(logits, options, kNone, kNone)];
  }
  for (size_t id = 0; id < 50; ++id) {
    EXPECT_NEAR(count[id] / double(kDraws), expected[id], 0.012) << id;
    EXPECT_FALSE(expected[id] == 0 && count[id] > 0) << id;
  }
}

TEST(SampleTest, DependsOnSeedAndPositionOnly) {
  const std::vector<float> logits(400, 0.0f);
  const SamplingOptions options{.temperature = 1, .seed = 5}, other{.temperature = 1, .seed = 6};
  const std::vector<int32_t> three = {1, 2, 3}, also_three = {7, 8, 9}, four = {1, 2, 3, 4};
  EXPECT_EQ(Sample(logits, options, kNone, three), Sample(logits, options, four, also_three));
  EXPECT_NE(Sample(logits, options, kNone, three), Sample(logits, options, kNone, four));
  EXPECT_NE(Sample(logits, options, kNone, three), Sample(logits, other, kNone, three));
}

TEST(SampleTest, GreedyTakesTheFirstOfEquals) {
  EXPECT_EQ(Sample(std::vector<float>{0, 4, 4, 1}, {}, kNone, kNone), 1);
}

TEST(SampleTest, RefusesBrokenLogits) {
  for (const float broken : {NAN, kInfinity}) {
    for (const float temperature : {0.0f, 1.0f}) {
      const std::vector<float> logits = {0, broken, 1};
      EXPECT_THROW(Sample(logits, {.temperature = temperature}, kNone, kNone), std::runtime_error);
      EXPECT_THROW(LogprobsOf(logits, 0, 1), std::runtime_error);
    }
  }
  const std::vector<float> nothing(3, -kInfinity);
  EXPECT_THROW(Sample(nothing, {.temperature = 1}, kNone, kNone), std::runtime_error);
  EXPECT_THROW(Sample(std::vector<float>{}, {}, kNone, kNone), std::invalid_argument);
}

TEST(SampleTest, PenaltiesThatOverflowAreNoBrokenLogits) {
  const std::vector<float> logits = {20, -20, 3, -kInfinity};
  const std::vector<int32_t> said = {0, 1, 3};
  for (const SamplingOptions& options :
       {SamplingOptions{.repetition_penalty = 1e-39f}, SamplingOptions{.presence_penalty = -3e38f},
        SamplingOptions{.presence_penalty = -3e38f, .frequency_penalty = -3e38f}}) {
    EXPECT_EQ(Sample(logits, options, kNone, said), 0);
    EXPECT_THAT(FilteredProbabilities(logits, options, kNone, said), ElementsAre(1, 0, 0, 0));
  }
  const SamplingOptions large{.repetition_penalty = 3e38f};
  EXPECT_EQ(Sample(logits, large, kNone, said), 2);
  const std::vector<float> broken = {20, kInfinity, 3};
  EXPECT_THROW(Sample(broken, large, kNone, said), std::runtime_error);
}

TEST(SampleTest, RefusesOptionsOutOfRange) {
  const std::vector<float> logits = {0, 1};
  for (const SamplingOptions& bad :
       {SamplingOptions{.temperature = -1}, SamplingOptions{.temperature = NAN},
        SamplingOptions{.temperature = 1, .top_p = 0},
        SamplingOptions{.temperature = 1, .top_p = 1.1f},
        SamplingOptions{.temperature = 1, .min_p = -0.1f},
        SamplingOptions{.temperature = 1, .min_p = 2}, SamplingOptions{.repetition_penalty = 0},
        SamplingOptions{.presence_penalty = NAN},
        SamplingOptions{.frequency_penalty = kInfinity}}) {
    EXPECT_THROW(Sample(logits, bad, kNone, kNone), std::invalid_argument);
    EXPECT_THROW(FilteredProbabilities(logits, bad, kNone, kNone), std::invalid_argument);
  }
}

TEST(LogprobsOfTest, EqualsLogSoftmaxAndOrdersTheBest) {
  const std::vector<float> logits = RandomLogits(700, 4, /*with_ties=*/true);
  const std::vector<double> p = Softmax({logits.begin(), logits.end()});
  std::vector<int32_t> order(700);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  for (const uint32_t top : {0u, 1u, 20u, 700u, 9999u}) {
    const TokenLogprobs got = LogprobsOf(logits, 44, top);
    EXPECT_EQ(got.chosen.id, 44);
    EXPECT_NEAR(got.chosen.logprob, std::log(p[44]), 1e-5);
    ASSERT_EQ(got.top.size(), std::min(top, 700u));
    for (size_t i = 0; i < got.top.size(); ++i) {
      ASSERT_EQ(got.top[i].id, order[i]) << i;
      EXPECT_NEAR(got.top[i].logprob, std::log(p[order[i]]), 1e-5);
    }
  }
  EXPECT_THROW(LogprobsOf(logits, 700, 1), std::invalid_argument);
  EXPECT_THROW(LogprobsOf(logits, -1, 1), std::invalid_argument);
}

}  // namespace
}  // namespace llava
