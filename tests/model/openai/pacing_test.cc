// Which attempts are repeated, when, and how fast requests go.
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "model/openai/rate_limit.h"
#include "model/openai/retry_policy.h"

namespace llava {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;

TEST(RetryPolicyTest, JudgesEveryStatus) {
  EXPECT_EQ(JudgeStatus(200, "{}"), Verdict::kAnswer);
  for (const int status : {408, 409, 425, 429, 500, 502, 503, 504, 529}) {
    EXPECT_EQ(JudgeStatus(status, "{}"), Verdict::kRetry) << status;
  }
  for (const int status : {400, 413, 422}) {
    EXPECT_EQ(JudgeStatus(status, "{}"), Verdict::kFail) << status;
  }
  for (const int status : {301, 307, 401, 402, 403, 404}) {
    EXPECT_EQ(JudgeStatus(status, "{}"), Verdict::kFatal) << status;
  }
}

TEST(RetryPolicyTest, NoCreditIsNotARateLimit) {
  EXPECT_EQ(JudgeStatus(429, R"({"error": {"code": "insufficient_quota", "message": "pay"}})"),
            Verdict::kFatal);
  EXPECT_EQ(JudgeStatus(429, R"({"error": {"code": "rate_limit_exceeded"}})"), Verdict::kRetry);
  EXPECT_EQ(JudgeStatus(429, R"({"error": {"code": null}})"), Verdict::kRetry);
  EXPECT_EQ(JudgeStatus(429, "busy"), Verdict::kRetry);
}

TEST(RetryPolicyTest, AFlaggedInputIsNoWrongKey) {
  EXPECT_EQ(JudgeStatus(403, R"({"error": {"code": 403, "message": "flagged", "metadata":
                                {"reasons": ["violence"], "flagged_input": "a knife"}}})"),
            Verdict::kFail);
  for (const char* body :
       {R"({"error": {"message": "key disabled", "metadata": {"provider_name": "x"}}})",
        R"({"error": {"metadata": null}})", R"({"error": "no"})", "forbidden"}) {
    EXPECT_EQ(JudgeStatus(403, body), Verdict::kFatal) << body;
  }
}

TEST(RetryPolicyTest, ReadsRetryAfterInItsForms) {
  const auto now = std::chrono::system_clock::from_time_t(784111777);  // 6 Nov 1994 08:49:37
  EXPECT_EQ(ParseRetryAfter("20", now), 20'000ms);
  EXPECT_EQ(ParseRetryAfter(" 0.25 ", now), 250ms);
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 1994 08:49:47 GMT", now), 10'000ms);
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 1994 08:00:00 GMT", now), 0ms);  // past
  for (const char* wrong : {"", "soon", "-5", "inf", "nan"}) {
    EXPECT_EQ(ParseRetryAfter(wrong, now), std::nullopt) << wrong;
  }
  EXPECT_EQ(ParseRetryAfterMs("1500"), 1500ms);
  EXPECT_EQ(ParseRetryAfterMs("x"), std::nullopt);
}

TEST(BackoffTest, DoublesWithJitterUpToItsLimit) {
  Backoff backoff({.first = 1000ms, .most = 8000ms});
  const milliseconds most[] = {1000ms, 2000ms, 4000ms, 8000ms, 8000ms, 8000ms};
  for (int i = 0; i < 6; ++i) {
    for (int repeat = 0; repeat < 50; ++repeat) {
      const milliseconds pause = backoff.After(i + 1);
      EXPECT_GE(pause, most[i] / 2);
      EXPECT_LE(pause, most[i]);
    }
  }
  EXPECT_LE(backoff.After(1000), 8000ms);
}

TEST(BackoffTest, NoTwoClientsAreInStep) {
  const auto pauses = [] {
    Backoff backoff({.first = 1'000'000ms, .most = 1'000'000ms});
    std::vector<milliseconds> pauses;
    for (int i = 0; i < 20; ++i) pauses.push_back(backoff.After(1));
    return pauses;
  };
  const auto one = pauses();
  EXPECT_NE(one, pauses());
  EXPECT_GT(std::set(one.begin(), one.end()).size(), 1u);
}

class RateLimitTest : public testing::Test {
 protected:
  // Sends as fast as allowed for a minute; returns how many went.
  static int SendForAMinute(RateLimit& limit, RateLimit::Time begin, uint64_t tokens) {
    RateLimit::Time now = begin;
    int sent = 0;
    while ((now = limit.Earliest(now, tokens)) < begin + 60s) {
      limit.Take(now, tokens);
      ++sent;
    }
    return sent;
  }
  const RateLimit::Time begin_{1000s};
};

TEST_F(RateLimitTest, WithoutLimitsAllGoAtOnce) {
  RateLimit limit(0, 0, begin_);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(limit.Earliest(begin_, 100'000), begin_);
    limit.Take(begin_, 100'000);
  }
}

TEST_F(RateLimitTest, HoldsRequestsPerMinute) {
  RateLimit limit(60, 0, begin_);
  const int sent = SendForAMinute(limit, begin_, 1);
  EXPECT_GE(sent, 60);
  EXPECT_LE(sent, 66);  // and six seconds' worth at first
  RateLimit slow(2, 0, begin_);
  slow.Take(begin_, 1);
  EXPECT_EQ(slow.Earliest(begin_, 1), begin_ + 30s);
}

TEST_F(RateLimitTest, HoldsTokensPerMinute) {
  RateLimit limit(0, 6000, begin_);
  const int sent = SendForAMinute(limit, begin_, 100);
  EXPECT_GE(sent, 60);
  EXPECT_LE(sent, 66);
}

TEST_F(RateLimitTest, ARequestLargerThanTheBucketGoesWhenItIsFull) {
  RateLimit limit(0, 600, begin_);  // 10 a second, 60 in the bucket
  EXPECT_EQ(limit.Earliest(begin_, 1000), begin_);
  limit.Take(begin_, 1000);
  EXPECT_EQ(limit.Earliest(begin_, 1), begin_ + std::chrono::milliseconds(94'100));
}

TEST_F(RateLimitTest, UnusedTokensAreGivenBack) {
  RateLimit limit(0, 600, begin_);
  limit.Take(begin_, 60);
  EXPECT_GT(limit.Earliest(begin_, 60), begin_ + 5s);
  limit.Correct(60, 0);
  EXPECT_EQ(limit.Earliest(begin_, 60), begin_);
}

}  // namespace
}  // namespace llava
