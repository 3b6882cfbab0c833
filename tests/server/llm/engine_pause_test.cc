// Answers that gave way to others, and who may go before them.

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/llm/engine.h"
#include "tests/server/llm/rule_runner.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

class EnginePauseTest : public ::testing::Test {
 protected:
  // 20 blocks, 320 tokens; steps that take a while, so that orders can be seen.
  void Start(int workers) {
    {
      MutexLock lock(switches_->mutex);
      switches_->step_time = std::chrono::milliseconds(5);
    }
    const auto factory = [this](int, LoadWatch&) {
      return std::make_unique<RuleRunner>(switches_, 20);
    };
    LlmEngine::Options options;
    options.max_running = 8;
    engine_ = std::make_unique<LlmEngine>(options, RuleModel(workers, factory), metrics_,
                                          LlmEngine::Places{});
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }
  std::shared_ptr<Collector> Ask(std::vector<int32_t> ids, uint32_t tokens, int32_t priority) {
    auto sink = std::make_shared<Collector>();
    GenerateJob job = RuleJob(ids[0], tokens, sink, static_cast<int64_t>(ids.size()));
    job.ids = std::move(ids);
    job.place.priority = priority;
    EXPECT_TRUE(engine_->Submit(std::move(job)).ok());
    return sink;
  }
  void WaitForPreemption() {
    while (metrics_.Render().find("\nllava_llm_preemptions_total 1") == std::string::npos) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  int64_t ForeignRows() {
    MutexLock lock(switches_->mutex);
    return switches_->foreign_rows;
  }

  Metrics metrics_{"llm"};
  std::shared_ptr<RuleRunner::Switches> switches_ = std::make_shared<RuleRunner::Switches>();
  std::unique_ptr<LlmEngine> engine_;
};

TEST_F(EnginePauseTest, WhatIsMoreImportantThanWhatGaveWayDoesNotWaitForIt) {
  Start(1);
  const auto large = Ask(RuleIds(128, 10), 150, 0);
  while (large->count == 0) std::this_thread::yield();
  const auto important = Ask(RuleIds(80, 11), 220, 1);
  WaitForPreemption();
  const auto equal = Ask(RuleIds(5, 12), 2, 0);
  const auto small = Ask(RuleIds(5, 13), 2, 1);
  EXPECT_TRUE(small->Wait().ok());
  EXPECT_LT(important->count, 220u) << "it did not wait for its end";
  for (const auto& sink : {important, large, equal}) EXPECT_TRUE(sink->Wait().ok());
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->begun, (std::vector<int32_t>{10, 11, 13, 10, 12}))
      << "what is no more important waits behind what gave way";
  EXPECT_EQ(switches_->foreign_rows, 0);
}

TEST_F(EnginePauseTest, WhatGaveWayGoesOnByPriority) {
  Start(1);
  const auto least = Ask(RuleIds(64, 10), 200, 0);
  while (least->count == 0) std::this_thread::yield();
  const auto middle = Ask(RuleIds(64, 11), 200, 1);
  while (middle->count == 0) std::this_thread::yield();
  const auto most = Ask(RuleIds(64, 12), 250, 2);  // in the end it needs nearly all blocks
  for (const auto& sink : {most, middle, least}) EXPECT_TRUE(sink->Wait().ok());
  MutexLock lock(switches_->mutex);
  ASSERT_GE(switches_->begun.size(), 5u);
  switches_->begun.resize(5);
  EXPECT_EQ(switches_->begun, (std::vector<int32_t>{10, 11, 12, 11, 10}));
}

TEST_F(EnginePauseTest, NoJobIsLeftToAWorkerWithOneThatGaveWay) {
  Start(2);
  const auto large = Ask(RuleIds(128, 10), 150, 0);
  while (large->count == 0) std::this_thread::yield();
  // To the worker that knows its beginning, where it takes what the other one has.
  std::vector<int32_t> ids = RuleIds(80, 11);
  std::fill_n(ids.begin(), 64, 10);
  const auto important = Ask(ids, 230, 1);
  WaitForPreemption();
  const auto next = Ask(RuleIds(100, 10), 2, 0);
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_EQ(next->cached, 0) << "it ran where nothing was known of it";
  EXPECT_LT(important->count, 230u);
  EXPECT_TRUE(important->Wait().ok());
  EXPECT_TRUE(large->Wait().ok());
  EXPECT_EQ(ForeignRows(), 0);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_preemptions_total 1"));
}

TEST_F(EnginePauseTest, ATestOfTheDeviceIsNoPreemption) {
  Start(1);
  const auto running = Ask(RuleIds(5, 10), 50, 0);
  while (running->count == 0) std::this_thread::yield();
  const auto bad = Ask(RuleIds(5, RuleRunner::kThrow), 5, 0);
  EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
  running->Wait().IgnoreError();  // in the step that failed, or not
  const auto next = Ask(RuleIds(5, 10), 2, 0);
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_preemptions_total 0"));
}

}  // namespace
}  // namespace llava
