#include "server/gateway/turn_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "google/rpc/error_details.pb.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::system_clock;
using testing::HasSubstr;
using Permit = std::shared_ptr<TurnPermit>;

TEST(TokenBucketTest, FillsWithTimeAndNeverAboveAMinutesWorth) {
  const auto start = TokenBucket::TimePoint{} + std::chrono::hours(1);
  TokenBucket bucket(600, start);  // ten a second
  EXPECT_EQ(bucket.Wait(600, start).count(), 0);
  bucket.Take(600);
  EXPECT_NEAR(static_cast<double>(bucket.Wait(50, start).count()), 5000, 2);
  EXPECT_EQ(bucket.Wait(50, start + milliseconds(5001)).count(), 0);
  EXPECT_EQ(bucket.Wait(600, start + std::chrono::hours(2)).count(), 0);
  EXPECT_EQ(bucket.level(), 600);
  EXPECT_EQ(bucket.Wait(5000, start + std::chrono::hours(2)).count(), 0)
      << "more than it ever holds is let in when it is full";
  bucket.Take(5000);
  EXPECT_GT(bucket.Wait(1, start + std::chrono::hours(2)).count(), 400'000) << "debt is paid";
  bucket.Take(-100'000);
  EXPECT_EQ(bucket.level(), 600);
  TokenBucket open(0, start);
  open.Take(1e9);
  EXPECT_EQ(open.Wait(1e9, start).count(), 0);
}

TEST(TokenBucketTest, AChangedRateGivesNothingBack) {
  const auto start = TokenBucket::TimePoint{} + std::chrono::hours(1);
  TokenBucket bucket(600, start);
  bucket.Take(600);
  bucket.SetRate(60, start);
  EXPECT_EQ(bucket.level(), 0);
  EXPECT_NEAR(static_cast<double>(bucket.Wait(1, start).count()), 1000, 2) << "one a second now";
  bucket.SetRate(600, start + milliseconds(10'000));
  EXPECT_NEAR(bucket.level(), 10, 0.01) << "filled at the old rate until then";
  bucket.SetRate(6, start + milliseconds(10'000));
  EXPECT_EQ(bucket.level(), 6) << "no more than it holds";
  bucket.SetRate(0, start + milliseconds(10'000));
  EXPECT_EQ(bucket.Wait(1e9, start + milliseconds(10'000)).count(), 0);
  bucket.SetRate(60, start + milliseconds(10'000));
  EXPECT_EQ(bucket.level(), 60);
}

class TurnGateTest : public testing::Test {
 protected:
  static Caller Key(const std::string& name, const KeyLimits& limits = {}, uint32_t weight = 1) {
    auto key = std::make_shared<ApiKey>();
    key->name = name;
    key->limits = limits;
    key->weight = weight;
    return Caller(std::move(key));
  }
  void Open(int running, int waiting, milliseconds wait = milliseconds(60'000)) {
    gate_ = std::make_unique<TurnGate>(TurnGateOptions{running, waiting, wait}, metrics_);
  }
  // Asks for a place and expects an answer at once.
  absl::StatusOr<Permit> Ask(const Caller& caller, double tokens = 1) {
    absl::StatusOr<Permit> result = absl::UnknownError("waits");
    auto slot = std::make_shared<absl::StatusOr<Permit>*>(&result);
    gate_->Enter(caller, tokens, 0, system_clock::now() + std::chrono::hours(1),
                 [slot](absl::StatusOr<Permit> permit) {
                   if (*slot != nullptr) **slot = std::move(permit);
                 });
    *slot = nullptr;
    return result;
  }
  static bool HasRetry(const absl::Status& status) {
    google::rpc::RetryInfo retry;
    return GetDetail(status, &retry);
  }

  Metrics metrics_{"gateway"};
  std::unique_ptr<TurnGate> gate_;
};

TEST_F(TurnGateTest, AKeysOwnLimitsAreItsOwnFault) {
  Open(100, 100);
  const Caller few = Key("few", {.requests_per_minute = 3});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Ask(few).ok());
  const auto fourth = Ask(few).status();
  EXPECT_EQ(fourth.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(fourth.message()), HasSubstr("\"few\" may ask 3 questions a minute"));
  EXPECT_TRUE(HasRetry(fourth));
  EXPECT_TRUE(Ask(Key("other")).ok());

  const Caller one = Key("one", {.concurrent_turns = 1});
  auto permit = Ask(one);
  ASSERT_TRUE(permit.ok());
  EXPECT_EQ(Ask(one).status().code(), absl::StatusCode::kResourceExhausted);
  permit = absl::UnknownError("gone");
  EXPECT_TRUE(Ask(one).ok());
  EXPECT_TRUE(
      absl::StrContains(metrics_.Render(), "llava_gateway_key_refusals_total{key=\"few\"} 1"));
}

TEST_F(TurnGateTest, UploadsAndCountsAreRequestsToo) {
  Open(100, 100);
  const Caller few = Key("few", {.requests_per_minute = 3});
  EXPECT_TRUE(gate_->ChargeRequest(few).ok());
  EXPECT_TRUE(Ask(few).ok());
  EXPECT_TRUE(gate_->ChargeRequest(few).ok());
  for (const auto& status : {gate_->ChargeRequest(few), Ask(few).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("uploads, counts of tokens"));
    EXPECT_TRUE(HasRetry(status));
  }
  EXPECT_TRUE(gate_->ChargeRequest(Key("open")).ok());
}

// Turns that began before the keys file changed must not bring their key's old limits back: each
// would leave a full bucket behind.
TEST_F(TurnGateTest, LoweredLimitsHoldWhileOldTurnsEnd) {
  Open(100, 100);
  const Caller before = Key("greedy", {.requests_per_minute = 20});
  const Caller now = Key("greedy", {.requests_per_minute = 2});
  std::vector<Permit> running;
  for (int i = 0; i < 20; ++i) running.push_back(Ask(before).value());
  int let_in = 0;
  for (const Permit& permit : running) {
    let_in += Ask(now).ok() ? 1 : 0;
    permit->Release(1);
    let_in += Ask(now).ok() ? 1 : 0;
  }
  EXPECT_LE(let_in, kSlowdown) << "what time itself gives: two a minute";
}

TEST_F(TurnGateTest, TokensAreReservedAndSettled) {
  Open(100, 100);
  const Caller key = Key("k", {.tokens_per_minute = 1000});
  auto permit = Ask(key, 900);
  ASSERT_TRUE(permit.ok());
  EXPECT_EQ(Ask(key, 200).status().code(), absl::StatusCode::kResourceExhausted);
  (*permit)->Release(100);
  (*permit)->Release(5000);  // only the first one counts
  EXPECT_TRUE(Ask(key, 850).ok());
  EXPECT_TRUE(
      absl::StrContains(metrics_.Render(), "llava_gateway_key_tokens_total{key=\"k\"} 100"));
}

TEST_F(TurnGateTest, AFullHouseAndAFullQueueAreUnavailable) {
  Open(2, 1);
  auto a = Ask(Key("a")), b = Ask(Key("b"));
  ASSERT_TRUE(a.ok() && b.ok());
  bool came = false;
  gate_->Enter(Key("c"), 1, 0, system_clock::now() + std::chrono::hours(1),
               [&](absl::StatusOr<Permit> permit) { came = permit.ok(); });
  const auto full = Ask(Key("d")).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(HasRetry(full));
  EXPECT_FALSE(came);
  (*a)->Release(0);
  EXPECT_TRUE(came);
}

TEST_F(TurnGateTest, WhatAnEarlierProcessLetInIsCountedButNotRefused) {
  Open(2, 0, milliseconds(50));
  const Caller ann =
      Key("ann", {.requests_per_minute = 1, .tokens_per_minute = 100, .concurrent_turns = 1});
  const auto end = system_clock::now() + std::chrono::hours(1);
  std::vector<Permit> permits;
  std::vector<absl::StatusCode> refusals;
  std::mutex mutex;
  const auto again = [&](system_clock::time_point deadline) {
    return gate_->ReEnter(ann, 90, 0, deadline, [&](absl::StatusOr<Permit> permit) {
      std::lock_guard lock(mutex);
      if (permit.ok()) {
        permits.push_back(*std::move(permit));
      } else {
        refusals.push_back(permit.status().code());
      }
    });
  };
  for (int i = 0; i < 3; ++i) again(end);
  EXPECT_EQ(permits.size(), 2U) << "places are as many as ever";
  EXPECT_EQ(Ask(ann).status().code(), absl::StatusCode::kResourceExhausted) << "they count";
  EXPECT_EQ(Ask(Key("bob")).status().code(), absl::StatusCode::kUnavailable);
  again(system_clock::now() + milliseconds(1));
  const auto refused = [&] {
    std::lock_guard lock(mutex);
    return refusals.size();
  };
  while (refused() == 0) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(refusals.at(0), absl::StatusCode::kDeadlineExceeded);
  gate_->Cancel(again(end));
  EXPECT_EQ(refusals.at(1), absl::StatusCode::kCancelled);
  std::this_thread::sleep_for(milliseconds(120));
  EXPECT_EQ(refused(), 2U) << "--turn-queue-timeout is for new questions";
  const std::vector<Permit> held = std::move(permits);
  permits.clear();
  for (const Permit& permit : held) permit->Release(90);
  ASSERT_EQ(permits.size(), 1U);
  permits[0]->Release(90);
  const auto dear = Ask(ann, 50).status();
  EXPECT_EQ(dear.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(dear.message()), HasSubstr("tokens a minute")) << "no question was taken";
}

TEST_F(TurnGateTest, WhoWaitsCanGoAndIsNotWaitedFor) {
  Open(1, 10, milliseconds(150));
  auto a = Ask(Key("a"));
  std::map<std::string, absl::StatusCode> ends;
  std::mutex mutex;
  const auto enter = [&](const std::string& name, milliseconds deadline) {
    return gate_->Enter(Key("k", {.requests_per_minute = 5, .concurrent_turns = 5}), 1, 0,
                        system_clock::now() + deadline, [&, name](const auto& permit) {
                          std::lock_guard lock(mutex);
                          ends[name] = permit.status().code();
                        });
  };
  const auto end = [&](const std::string& name) {
    std::lock_guard lock(mutex);
    return ends.contains(name) ? ends[name] : absl::StatusCode::kUnknown;
  };
  gate_->Cancel(enter("left", std::chrono::hours(1)));
  EXPECT_EQ(end("left"), absl::StatusCode::kCancelled);
  enter("deadline", milliseconds(30));
  enter("patience", std::chrono::hours(1));
  for (int i = 0; i < 12'000 * kSlowdown && end("patience") == absl::StatusCode::kUnknown; ++i) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  EXPECT_EQ(end("deadline"), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(end("patience"), absl::StatusCode::kUnavailable);
  enter("closed", std::chrono::hours(1));
  gate_->Close();
  EXPECT_EQ(end("closed"), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Ask(Key("late")).status().code(), absl::StatusCode::kUnavailable);
}

// A key that asks for everything gets its share, one with twice the weight two of them.
TEST_F(TurnGateTest, SharesPlacesByWeight) {
  Open(1, 10'000);
  auto first = Ask(Key("a"));
  std::vector<std::string> order;
  std::vector<Permit> permits;
  const auto enter = [&](const std::string& name, uint32_t weight, int count) {
    for (int i = 0; i < count; ++i) {
      gate_->Enter(Key(name, {}, weight), 100, 0, system_clock::now() + std::chrono::hours(1),
                   [&, name](absl::StatusOr<Permit> permit) {
                     if (!permit.ok()) return;  // Close, at the end
                     order.push_back(name);
                     permits.push_back(*std::move(permit));
                   });
    }
  };
  enter("greedy", 1, 300);
  enter("heavy", 2, 100);
  enter("small", 1, 50);
  (*first)->Release(0);
  while (order.size() < 200) {
    const Permit done = std::move(permits.back());
    permits.pop_back();
    done->Release(0);
  }
  std::map<std::string, int> counts;
  for (const std::string& name : order) ++counts[name];
  EXPECT_NEAR(counts["heavy"], 100, 3);
  EXPECT_NEAR(counts["small"], 50, 3);
  EXPECT_NEAR(counts["greedy"], 50, 3);
  gate_->Close();
  permits.clear();
}

TEST_F(TurnGateTest, NeverMoreThanItsPlacesOnManyThreads) {
  Open(4, 10'000);
  std::atomic<int> running = 0, most = 0, done = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(static_cast<unsigned>(t + 1));
      for (int i = 0; i < 300; ++i) {
        std::atomic<bool> ended = false;
        const uint64_t ticket = gate_->Enter(
            Key(std::string(1, static_cast<char>('a' + t))), 10, 0,
            system_clock::now() + std::chrono::hours(1), [&](absl::StatusOr<Permit> permit) {
              if (permit.ok()) {
                const int now = ++running;
                int seen = most;
                while (now > seen && !most.compare_exchange_weak(seen, now)) {
                }
                --running;
                (*permit)->Release(5);
              }
              ++done;
              ended = true;
            });
        if (random() % 3 == 0) gate_->Cancel(ticket);
        while (!ended) std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(done, 1200);
  EXPECT_LE(most, 4);
}

class TurnLimitsTest : public GatewayTest {};

TEST_F(TurnLimitsTest, QuestionsWaitForAPlaceAndLeaveTheQueueWithTheirClient) {
  options_.gate.max_running = 1;
  options_.gate.max_waiting = 2;
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string one = NewSession(), two = NewSession(), three = NewSession();
  const Answer first = Ask(Question(one, "a b c d e f g h"), [&](auto&, const Answer&) {
    // A client that goes while it waits leaves no turn behind.
    EXPECT_EQ(Ask(Question(two, "x"), {}, milliseconds(50)).status.error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_waiting") == 0; }));
    llm_.Release();
  });
  EXPECT_TRUE(first.is_finished);
  EXPECT_TRUE(Turns(two).empty());
  // One that stays gets its answer.
  std::thread other;
  const Answer again = Ask(Question(one, "a b c d"), [&](auto&, const Answer&) {
    other = std::thread([&] { EXPECT_TRUE(Ask(Question(three, "x")).is_finished); });
    EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_waiting") == 1; }));
    llm_.Set({});
    llm_.Release();
  });
  EXPECT_TRUE(again.is_finished);
  other.join();
}

TEST_F(TurnLimitsTest, APlaceIsFreeWhenTheEndIsTold) {
  options_.gate.max_running = 1;
  options_.gate.max_waiting = 0;
  StartGateway();
  const std::string session = NewSession();
  for (int i = 0; i < 50; ++i) {
    const Answer answer = Ask(Question(session, "x"));
    ASSERT_TRUE(answer.status.ok()) << i << answer.status.error_message();
  }
  EXPECT_FALSE(Ask(Question(session, "x", {"no picture"})).status.ok());
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "fault"}, .failures = 1});
  EXPECT_FALSE(Ask(Question(session, "x")).status.ok());
  EXPECT_TRUE(Ask(Question(session, "x")).status.ok());
}

}  // namespace
}  // namespace llava
