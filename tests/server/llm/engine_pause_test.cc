// Answers that gave way to others, and who may go before them.

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "server/llm/engine.h"
#include "tests/server/llm/rule_runner.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

// So slow that this thread, held up for seconds, is still in time for what a model does meanwhile.
constexpr std::chrono::milliseconds kSlowStep{50};

class EnginePauseTest : public ::testing::Test {
 protected:
  // 20 blocks, 320 tokens.
  void Start(int workers) {
    SetStepTime(kSlowStep);
    const auto factory = [this](int, LoadWatch&) {
      return std::make_unique<RuleRunner>(switches_, 20);
    };
    LlmEngine::Options options;
    options.max_running = 8;
    engine_ = std::make_unique<LlmEngine>(options, RuleModel(workers, factory), metrics_,
                                          LlmEngine::Places{});
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }
  void SetStepTime(std::chrono::milliseconds time) {
    MutexLock lock(switches_->mutex);
    switches_->step_time = time;
  }
  std::shared_ptr<Collector> Ask(std::vector<int32_t> ids, uint32_t tokens, int32_t priority) {
    auto sink = std::make_shared<Collector>();
    GenerateJob job = RuleJob(ids[0], tokens, sink, static_cast<int64_t>(ids.size()));
    job.ids = std::move(ids);
    job.place.priority = priority;
    EXPECT_TRUE(engine_->Submit(std::move(job)).ok());
    return sink;
  }
  static bool Begins(const Collector& sink) {
    return Eventually([&] { return sink.count > 0; });
  }
  // The next step waits until LetGo: those that run are in the midst of their answers.
  bool HoldsWhenOneGivesWay() {
    {
      MutexLock lock(switches_->mutex);
      switches_->hold_on_end = true;  // a preemption is the first one
      switches_->step_time = {};
    }
    const bool held = Eventually([&] {
      MutexLock lock(switches_->mutex);
      return switches_->held;
    });
    return held && metrics_.Render().find("\nllava_llm_preemptions_total 1\n") != std::string::npos;
  }
  void LetGo() {
    MutexLock lock(switches_->mutex);
    switches_->hold = switches_->hold_on_end = false;
    switches_->step_time = kSlowStep;
    switches_->changed.NotifyAll();
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
  EXPECT_TRUE(Begins(*large));
  const auto important = Ask(RuleIds(80, 11), 220, 1);
  EXPECT_TRUE(Begins(*important));
  EXPECT_TRUE(HoldsWhenOneGivesWay());
  const auto equal = Ask(RuleIds(5, 12), 2, 0);
  const auto small = Ask(RuleIds(5, 13), 2, 1);
  LetGo();
  EXPECT_TRUE(small->Wait().ok());
  EXPECT_LT(important->count, 220u) << "it did not wait for its end";
  SetStepTime({});
  for (const auto& sink : {important, large, equal}) EXPECT_TRUE(sink->Wait().ok());
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->begun, (std::vector<int32_t>{10, 11, 13, 10, 12}))
      << "what is no more important waits behind what gave way";
  EXPECT_EQ(switches_->foreign_rows, 0);
}

TEST_F(EnginePauseTest, WhatGaveWayGoesOnByPriority) {
  Start(1);
  const auto least = Ask(RuleIds(64, 10), 200, 0);
  EXPECT_TRUE(Begins(*least));
  const auto middle = Ask(RuleIds(64, 11), 200, 1);
  EXPECT_TRUE(Begins(*middle));
  const auto most = Ask(RuleIds(64, 12), 250, 2);  // in the end it needs nearly all blocks
  EXPECT_TRUE(Begins(*most));
  SetStepTime({});
  for (const auto& sink : {most, middle, least}) EXPECT_TRUE(sink->Wait().ok());
  MutexLock lock(switches_->mutex);
  ASSERT_GE(switches_->begun.size(), 5u);
  switches_->begun.resize(5);
  EXPECT_EQ(switches_->begun, (std::vector<int32_t>{10, 11, 12, 11, 10}));
}

TEST_F(EnginePauseTest, NoJobIsLeftToAWorkerWithOneThatGaveWay) {
  Start(2);
  const auto large = Ask(RuleIds(128, 10), 150, 0);
  EXPECT_TRUE(Begins(*large));
  // To the worker that knows its beginning, where it takes what the other one has.
  std::vector<int32_t> ids = RuleIds(80, 11);
  std::fill_n(ids.begin(), 64, 10);
  const auto important = Ask(ids, 230, 1);
  EXPECT_TRUE(Begins(*important));
  EXPECT_TRUE(HoldsWhenOneGivesWay());
  const auto next = Ask(RuleIds(100, 10), 2, 0);
  LetGo();
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_EQ(next->cached, 0) << "it ran where nothing was known of it";
  EXPECT_LT(important->count, 230u);
  SetStepTime({});
  EXPECT_TRUE(important->Wait().ok());
  EXPECT_TRUE(large->Wait().ok());
  EXPECT_EQ(ForeignRows(), 0);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_preemptions_total 1\n"));
}

TEST_F(EnginePauseTest, ATestOfTheDeviceIsNoPreemption) {
  Start(1);
  const auto running = Ask(RuleIds(5, 10), 50, 0);
  EXPECT_TRUE(Begins(*running));
  const auto bad = Ask(RuleIds(5, RuleRunner::kThrow), 5, 0);
  EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
  running->Wait().IgnoreError();  // in the step that failed, or not
  const auto next = Ask(RuleIds(5, 10), 2, 0);
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_preemptions_total 0"));
}

}  // namespace
}  // namespace llava
