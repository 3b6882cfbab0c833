// The engine over a model made of rules, so that every fault and every order can be staged.

#include "server/llm/engine.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "server/runtime/mutex.h"
#include "server/runtime/status.h"
#include "tests/server/llm/rule_runner.h"

namespace llava {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class EngineTest : public ::testing::Test {
 protected:
  void Start(LlmEngine::Options options = {}, int workers = 1) {
    auto factory = [this](int, LoadWatch&) {
      if (on_load_) on_load_();
      return std::make_unique<RuleRunner>(switches_, blocks_);
    };
    engine_ = std::make_unique<LlmEngine>(options, RuleModel(workers, factory), metrics_,
                                          LlmEngine::Places{});
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }

  GenerateJob Job(int32_t first, uint32_t tokens, std::shared_ptr<Collector> sink,
                  int64_t prompt = 5) {
    return RuleJob(first, tokens, std::move(sink), prompt);
  }
  void Hold(bool hold) {
    MutexLock lock(switches_->mutex);
    switches_->hold = hold;
    switches_->changed.NotifyAll();
  }
  std::vector<int32_t> Begun() {
    MutexLock lock(switches_->mutex);
    return switches_->begun;
  }
  void SetDead(bool dead) {
    MutexLock lock(switches_->mutex);
    switches_->dead = dead;
  }
  void WaitUntilHeld() {
    const auto held = [this] {
      MutexLock lock(switches_->mutex);
      return switches_->held;
    };
    while (!held()) std::this_thread::yield();
  }
  int64_t ComputedRows() {
    MutexLock lock(switches_->mutex);
    EXPECT_EQ(switches_->foreign_rows, 0);
    return switches_->computed_rows;
  }
  void WaitForBegun(size_t count) {
    while (Begun().size() < count) std::this_thread::yield();
  }

  Metrics metrics_{"llm"};
  std::shared_ptr<RuleRunner::Switches> switches_ = std::make_shared<RuleRunner::Switches>();
  int64_t blocks_ = 1000;              // of each worker
  std::function<void()> on_load_;      // called on the thread of each worker that loads
  std::unique_ptr<LlmEngine> engine_;  // last: its threads use the fields above
};

TEST_F(EngineTest, RunsManyTogetherAndEachToItsEnd) {
  Start({.max_running = 8, .prefill_chunk = 3});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> sinks;
  for (int i = 0; i < 8; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(engine_->Submit(Job(10 + i, 4 + static_cast<uint32_t>(i), sinks.back())).ok());
    if (i == 0) WaitUntilHeld();  // so that the others join at the next step, all at once
  }
  Hold(false);
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(sinks[static_cast<size_t>(i)]->Wait().ok());
    const auto& ids = sinks[static_cast<size_t>(i)]->ids;
    ASSERT_EQ(ids.size(), 4u + static_cast<size_t>(i));
    EXPECT_EQ(ids.back(), RuleRunner::kFirst + 3 + i);
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->end, AnswerEnd::kLength);
  }
  MutexLock lock(switches_->mutex);
  EXPECT_GT(switches_->most_together, 4u);
}

TEST_F(EngineTest, WorkersPrepareForAsManyAnswersAsTheyMayHave) {
  Start({.max_running = 8});
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->prepared, 8);
}

TEST_F(EngineTest, AFaultyStepEndsItsSequencesAndTheEngineGoesOn) {
  Start();
  auto bad = std::make_shared<Collector>(), next = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(RuleRunner::kThrow, 5, bad)).ok());
  EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
  ASSERT_TRUE(engine_->Submit(Job(10, 5, next)).ok());
  EXPECT_TRUE(next->Wait().ok());
}

TEST_F(EngineTest, ABrokenAnswerLeavesItsNeighboursAlone) {
  Start();
  Hold(true);
  auto broken = std::make_shared<Collector>(), good = std::make_shared<Collector>(),
       refused = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(RuleRunner::kNan, 9, broken)).ok());
  ASSERT_TRUE(engine_->Submit(Job(10, 9, good)).ok());
  ASSERT_TRUE(engine_->Submit(Job(RuleRunner::kRefuse, 9, refused)).ok());
  Hold(false);
  EXPECT_EQ(broken->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(broken->ids.size(), 1u);
  EXPECT_EQ(refused->Wait().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(good->Wait().ok());
  EXPECT_EQ(good->ids.size(), 9u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_nan_logits_total 1"));
}

TEST_F(EngineTest, TokensDrawnByTheRunnerAreThoseTheHostDraws) {
  std::vector<std::vector<int32_t>> ids_of[2];
  for (const bool draws : {false, true}) {
    {
      MutexLock lock(switches_->mutex);
      switches_->draws = draws;
    }
    Start();
    Hold(true);
    std::vector<std::shared_ptr<Collector>> sinks;
    for (int i = 0; i < 4; ++i) {
      sinks.push_back(std::make_shared<Collector>());
      GenerateJob job = Job(i == 3 ? RuleRunner::kNan : 10 + i, 12, sinks.back());
      job.sampling.temperature = 0.7f;  // the rule's token has 56 % of the weight
      job.sampling.top_p = 0.5f;
      if (i == 1) job.sampling.presence_penalty = 0.5f;  // looks at earlier tokens
      if (i == 2) job.logprobs = 1;                      // wants the logits
      ASSERT_TRUE(engine_->Submit(std::move(job)).ok());
    }
    Hold(false);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(sinks[static_cast<size_t>(i)]->Wait().code(),
                i == 3 ? absl::StatusCode::kInternal : absl::StatusCode::kOk);
      ids_of[draws].push_back(sinks[static_cast<size_t>(i)]->ids);
    }
    engine_.reset();
  }
  EXPECT_EQ(ids_of[0], ids_of[1]);
  EXPECT_EQ(ids_of[0][0].size(), 12u);
  EXPECT_EQ(ids_of[0][3].size(), 1u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_nan_logits_total 2"));
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->drawn, 12 + 2);  // of the first, and of the broken one until it broke
}

TEST_F(EngineTest, TellsThatAWorkerLoads) {
  std::string during;
  on_load_ = [&] { during = metrics_.Render(); };
  Start();
  EXPECT_THAT(during, HasSubstr("llava_llm_workers{state=\"loading\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"loading\"} 0"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"ready\"} 1"));
}

TEST_F(EngineTest, ADeadDeviceFailsEverybodyAndSaysSo) {
  Start({.respawn_delay = std::chrono::milliseconds(1), .respawns = 3});
  auto running = std::make_shared<Collector>(), waiting = std::make_shared<Collector>();
  Hold(true);
  ASSERT_TRUE(engine_->Submit(Job(10, 5, running)).ok());
  WaitUntilHeld();
  ASSERT_TRUE(engine_->Submit(Job(10, 5, waiting)).ok());
  SetDead(true);
  Hold(false);
  EXPECT_EQ(running->Wait().code(), absl::StatusCode::kUnavailable)
      << "so that the gateway goes elsewhere";
  EXPECT_EQ(waiting->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->Submit(Job(10, 5, waiting)).message(), "llm: all workers failed");
  engine_->Stop();
  EXPECT_THAT(engine_->failure(), HasSubstr("device lost"));
  EXPECT_EQ(engine_->given_up(), "device lost");
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"failed\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_worker_respawns_total 3"));
}

TEST_F(EngineTest, AWorkerThatDiedBeginsAnew) {
  Start({.respawn_delay = std::chrono::milliseconds(1), .respawns = 1000});
  auto running = std::make_shared<Collector>(), next = std::make_shared<Collector>();
  SetDead(true);
  ASSERT_TRUE(engine_->Submit(Job(10, 5, running)).ok());
  EXPECT_EQ(running->Wait().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(engine_->Submit(Job(11, 5, next)).ok()) << "it waits for the worker";
  SetDead(false);
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_EQ(next->ids.size(), 5u);
  EXPECT_EQ(engine_->failure(), "");
}

TEST_F(EngineTest, WithoutAWorkerJobsWaitNoLongerThanTheirClients) {
  Start({.queue = 2, .respawn_delay = std::chrono::hours(1)});
  SetDead(true);
  auto running = std::make_shared<Collector>(), late = std::make_shared<Collector>(),
       gone = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 5, running)).ok());
  EXPECT_EQ(running->Wait().code(), absl::StatusCode::kUnavailable);
  GenerateJob with_deadline = Job(11, 5, late);
  with_deadline.deadline = GenerateJob::Clock::now() + std::chrono::milliseconds(50);
  ASSERT_TRUE(engine_->Submit(std::move(with_deadline)).ok());
  ASSERT_TRUE(engine_->Submit(Job(12, 5, gone)).ok());
  gone->Go();
  EXPECT_EQ(late->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(gone->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(engine_->waiting(), 0) << "they fill no queue";
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_requests_waiting 0"));
}

TEST_F(EngineTest, CancelledAndLateJobsLeaveAtTheNextStep) {
  Start({.max_running = 2});
  Hold(true);
  auto gone = std::make_shared<Collector>(), late = std::make_shared<Collector>(),
       queued = std::make_shared<Collector>(), fine = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 800, gone)).ok());
  WaitUntilHeld();  // it takes no more jobs
  GenerateJob with_deadline = Job(11, 800, late);
  with_deadline.deadline = GenerateJob::Clock::now();
  ASSERT_TRUE(engine_->Submit(std::move(with_deadline)).ok());
  ASSERT_TRUE(engine_->Submit(Job(12, 3, queued)).ok());
  ASSERT_TRUE(engine_->Submit(Job(13, 3, fine)).ok());
  gone->Go();
  queued->Go();
  Hold(false);
  EXPECT_EQ(gone->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(gone->ids.size(), 3u);
  EXPECT_EQ(late->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(queued->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(fine->Wait().ok());
  EXPECT_EQ(Begun(), (std::vector<int32_t>{10, 13})) << "the others did no work";
}

TEST_F(EngineTest, JoinsByPriorityAndTenantAndWithinItsMemory) {
  blocks_ = 2;
  Start({.max_running = 2});
  auto first = std::make_shared<Collector>();
  Hold(true);
  ASSERT_TRUE(engine_->Submit(Job(10, 15, first, 17)).ok());  // both blocks
  WaitForBegun(1);
  std::vector<std::shared_ptr<Collector>> sinks;
  const auto submit = [&](int32_t id, const std::string& tenant, int32_t priority) {
    sinks.push_back(std::make_shared<Collector>());
    GenerateJob job = Job(id, 15, sinks.back(), 17);
    job.place.tenant = tenant;
    job.place.priority = priority;
    ASSERT_TRUE(engine_->Submit(std::move(job)).ok());
  };
  submit(20, "a", 0);
  submit(21, "a", 0);
  submit(22, "b", 0);
  submit(23, "b", 7);
  Hold(false);
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Wait().ok());
  EXPECT_EQ(Begun(), (std::vector<int32_t>{10, 23, 20, 22, 21}));
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->most_together, 1u);
}

TEST_F(EngineTest, JobsThatWereGivenUpInTheQueueDoNotCountAgainstTheirTenant) {
  Start({.max_running = 1});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> stay, gone;
  const auto submit = [&](int32_t id, const std::string& tenant, auto& sinks) {
    sinks.push_back(std::make_shared<Collector>());
    GenerateJob job = Job(id, 3, sinks.back());
    job.place.tenant = tenant;
    ASSERT_TRUE(engine_->Submit(std::move(job)).ok());
  };
  submit(10, "", stay);
  WaitForBegun(1);
  for (const int32_t id : {20, 21, 22}) submit(id, "a", gone);
  for (const int32_t id : {30, 31}) submit(id, "b", stay);
  for (const auto& sink : gone) sink->Go();
  for (const auto& sink : gone) EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kCancelled);
  submit(23, "a", stay);
  Hold(false);
  for (const auto& sink : stay) EXPECT_TRUE(sink->Wait().ok());
  EXPECT_EQ(Begun(), (std::vector<int32_t>{10, 30, 23, 31}));
}

TEST_F(EngineTest, RefusesAtTheDoor) {
  blocks_ = 2;
  Start({.queue = 1, .max_running = 1});
  const absl::Status huge = engine_->Submit(Job(10, 28, std::make_shared<Collector>()));
  EXPECT_EQ(huge.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(huge.message()), HasSubstr("33"));
  EXPECT_THAT(std::string(huge.message()), HasSubstr("32"));
  GenerateJob resumed = Job(10, 1, std::make_shared<Collector>());
  resumed.resumed_ids.assign(28, RuleRunner::kFirst);
  const absl::Status long_before = engine_->Submit(std::move(resumed));
  EXPECT_EQ(long_before.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(long_before.message()), HasSubstr("33"));
  EXPECT_THAT(std::string(long_before.message()), HasSubstr("32"));
  Hold(true);
  auto running = std::make_shared<Collector>(), waiting = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 5, running)).ok());
  WaitForBegun(1);
  ASSERT_TRUE(engine_->Submit(Job(11, 5, waiting)).ok());
  EXPECT_EQ(engine_->waiting(), 1);
  const absl::Status full = engine_->Submit(Job(12, 5, std::make_shared<Collector>()));
  EXPECT_EQ(full.code(), absl::StatusCode::kUnavailable);
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(GetDetail(full, &retry));
  EXPECT_GT(retry.retry_delay().nanos() + retry.retry_delay().seconds(), 0);
  std::thread stopper([this] { engine_->Stop(); });
  const auto stopping = [this] {
    const auto status = engine_->Submit(Job(12, 5, std::make_shared<Collector>()));
    return std::string(status.message()).find("stopping") != std::string::npos;
  };
  while (!stopping()) std::this_thread::yield();
  Hold(false);
  stopper.join();
  EXPECT_EQ(waiting->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->Submit(Job(13, 5, std::make_shared<Collector>())).code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, SeveralWorkersShareTheWork) {
  Start({.max_running = 1}, 2);
  Hold(true);
  auto one = std::make_shared<Collector>(), two = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 5, one)).ok());
  ASSERT_TRUE(engine_->Submit(Job(11, 5, two)).ok());
  WaitForBegun(2);
  EXPECT_EQ(engine_->running(), 2);
  Hold(false);
  EXPECT_TRUE(one->Wait().ok());
  EXPECT_TRUE(two->Wait().ok());
}

TEST_F(EngineTest, WhatWasComputedIsNotComputedAgain) {
  Start();
  auto first = std::make_shared<Collector>(), second = std::make_shared<Collector>(),
       other = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 5, first, 40)).ok());
  ASSERT_TRUE(first->Wait().ok());
  EXPECT_EQ(first->cached, 0);
  EXPECT_EQ(ComputedRows(), 44) << "the last token said is never read";
  GenerateJob follow = Job(10, 3, second, 40);
  follow.ids.insert(follow.ids.end(), first->ids.begin(), first->ids.end());
  follow.ids.push_back(11);
  follow.text_tokens = 46;
  ASSERT_TRUE(engine_->Submit(std::move(follow)).ok());
  ASSERT_TRUE(second->Wait().ok());
  EXPECT_EQ(second->cached, 44);
  EXPECT_EQ(ComputedRows(), 44 + 2 + 2);
  GenerateJob salted = Job(10, 1, other, 40);
  salted.cache_salt = "another tenant";
  ASSERT_TRUE(engine_->Submit(std::move(salted)).ok());
  ASSERT_TRUE(other->Wait().ok());
  EXPECT_EQ(other->cached, 0);
}

// Keys and values are never moved but where two prompts part within a block: one block then.
TEST_F(EngineTest, CopiesAtMostABlockForEachAnswerAndNoneInAStep) {
  Start();
  const auto copied = [this] {
    const std::string text = metrics_.Render();
    const std::string name = "\nllava_llm_kv_copied_bytes_total ";
    const size_t at = text.find(name);
    return at == std::string::npos ? 0.0 : std::stod(text.substr(at + name.size()));
  };
  constexpr double kBlockBytes = 160;  // of RuleModel
  auto first = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 300, first, 100)).ok());
  ASSERT_TRUE(first->Wait().ok());
  EXPECT_EQ(copied(), 0) << "nothing was shared";
  for (int i = 0; i < 8; ++i) {
    auto sink = std::make_shared<Collector>();
    GenerateJob job = Job(10, 100, sink, 90);  // parts from the first within a block
    job.ids.push_back(20 + i);
    job.text_tokens = 91;
    ASSERT_TRUE(engine_->Submit(std::move(job)).ok());
    ASSERT_TRUE(sink->Wait().ok());
    EXPECT_EQ(sink->cached, 90);
    EXPECT_LE(copied(), (i + 1) * kBlockBytes) << "bounded by the answers, not by their steps";
  }
  EXPECT_GT(copied(), 0);
}

TEST_F(EngineTest, WhatLedToBrokenNumbersIsNotKept) {
  Start();
  for (int i = 0; i < 2; ++i) {
    auto broken = std::make_shared<Collector>();
    ASSERT_TRUE(engine_->Submit(Job(RuleRunner::kNan, 9, broken, 64)).ok());
    EXPECT_EQ(broken->Wait().code(), absl::StatusCode::kInternal);
  }
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_cached_tokens_total 0"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_nan_logits_total 2"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_kv_cached_bytes 0"));
}

TEST_F(EngineTest, AnswersThatGiveWayGoOnWhereTheyWere) {
  blocks_ = 8;  // 128 tokens, for five answers of 61 in the end
  Start({.max_running = 8, .prefill_chunk = 7});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> sinks;
  for (int i = 0; i < 5; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(engine_->Submit(Job(10 + i, 40, sinks.back(), 21)).ok());
  }
  Hold(false);
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->Wait().ok());
    ASSERT_EQ(sink->ids.size(), 40u);
    for (int i = 0; i < 40; ++i) EXPECT_EQ(sink->ids[i], RuleRunner::kFirst + i);
  }
  EXPECT_GE(ComputedRows(), 5 * 60);
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("llava_llm_preemptions_total 0")));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_kv_bytes 0"));
}

// Everything at once, with few blocks: clients that go, faults, NaN, common beginnings.
TEST_F(EngineTest, KeepsItsBooksUnderRandomTraffic) {
  blocks_ = 12;
  Start({.queue = 10'000, .max_running = 6, .prefill_chunk = 20});
  std::mt19937 random(7);
  std::vector<std::pair<std::shared_ptr<Collector>, uint32_t>> all;
  for (int i = 0; i < 600; ++i) {
    auto sink = std::make_shared<Collector>();
    const uint32_t tokens = 1 + random() % 30;
    const uint32_t kind = random() % 20;
    GenerateJob job = Job(kind == 0   ? RuleRunner::kThrow
                          : kind == 1 ? RuleRunner::kNan
                                      : 10 + static_cast<int32_t>(random() % 3),
                          tokens, sink, 1 + static_cast<int64_t>(random() % 60));
    job.place.priority = static_cast<int32_t>(random() % 2);
    for (size_t j = job.ids.size() / 2; kind == 2 && j < job.ids.size(); ++j) job.ids[j] = 20;
    if (kind == 3) sink->Go();
    ASSERT_TRUE(engine_->Submit(std::move(job)).ok());
    all.emplace_back(std::move(sink), tokens);
    if (random() % 8 == 0) all[random() % all.size()].first->Go();
  }
  int complete = 0;
  for (const auto& [sink, tokens] : all) {
    if (!sink->Wait().ok()) continue;
    ++complete;
    ASSERT_EQ(sink->ids.size(), tokens);
    for (uint32_t i = 0; i < tokens; ++i) {
      ASSERT_EQ(sink->ids[i], RuleRunner::kFirst + static_cast<int32_t>(i));
    }
  }
  EXPECT_GT(complete, 300);
  ComputedRows();
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_kv_bytes 0")) << "no block was lost";
  auto last = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 12 * 16 - 20, last, 20)).ok()) << "which needs all of them";
  EXPECT_TRUE(last->Wait().ok());
}

TEST_F(EngineTest, ARequestGoesToTheWorkerThatKnowsItsBeginning) {
  Start({.max_running = 4}, 3);
  for (int round = 0; round < 20; ++round) {
    auto first = std::make_shared<Collector>(), again = std::make_shared<Collector>();
    ASSERT_TRUE(engine_->Submit(Job(10 + round, 2, first, 50)).ok());
    ASSERT_TRUE(first->Wait().ok());
    ASSERT_TRUE(engine_->Submit(Job(10 + round, 2, again, 50)).ok());
    ASSERT_TRUE(again->Wait().ok());
    EXPECT_EQ(again->cached, 49) << round;
  }
}

}  // namespace
}  // namespace llava
